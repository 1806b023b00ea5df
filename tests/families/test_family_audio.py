"""What a family's encoder hears and makes of it, against transformers' own extractors and classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_families import FAMILIES, FAMILY_NAMES, sound, stock_features, stock_rows, write_tiny

from prunella.device_runtime.sound.features import features
from prunella.speech_llm import load
from prunella.speech_llm.families import FAMILIES as KNOWN
from prunella.speech_llm.torch_engine import model_features

SECONDS = (0.05, 0.19, 0.49999, 0.5, 1.0, 1.00005, 2.31, 29.0, 29.5, 30.0)


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def model(request, tmp_path_factory):
    return load(write_tiny(request.param, tmp_path_factory.mktemp("audio") / request.param))


@pytest.mark.parametrize("seconds", SECONDS)
def test_features_are_those_of_the_familys_extractor(model, seconds):
    samples = sound(seconds)
    spec = model.config.audio.features
    found, valid = features(samples, spec)
    theirs = stock_features(model.config.family, samples, spec.num_mel_bins)
    expected = theirs[FAMILIES[model.config.family].features][0].numpy()
    if FAMILIES[model.config.family].frames_first:
        expected = expected.T
    mask = theirs.get(FAMILIES[model.config.family].mask)
    assert valid == (expected.shape[1] if mask is None else int(mask.sum()))
    # At exactly 30 s the stock's last window is reflected at its end; no piece of audio is as long (`max_seconds`).
    count = min(found.shape[1], expected.shape[1] - (found.shape[1] > expected.shape[1]))
    assert count >= valid - 1
    if not FAMILIES[
        model.config.family
    ].heard:  # whose chunks are filled up with zeros, not a window's silence
        count = min(count, spec.padded(len(samples)) // 160)
    # Kaldi's oracles compute in float32: where a bin is as quiet as their floor, that is seen.
    tolerance = 1e-3 if spec.kind == "fbank" else 1e-4
    np.testing.assert_allclose(found[:, :count], expected[:, :count], atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("seconds", [0.19, 0.5, 1.0, 2.31, pytest.param(29.5, marks=pytest.mark.slow)])
def test_audio_rows_are_those_of_the_stock_class(model, seconds):
    samples = sound(seconds)
    expected = stock_rows(model, samples)
    heard, valid = model_features(model, samples)
    count = model.config.audio_tokens(model.config.encoder_frames(valid))
    told = torch.tensor([valid]) if valid < heard.shape[1] else None
    found = model.embed_audio(heard[None], told)[0, :count]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("trimmed", [False, True])
def test_a_batch_hears_what_each_of_it_hears_alone(model, trimmed, tmp_path):
    model = _as_trimmed(model, trimmed, tmp_path)
    heard = [model_features(model, sound(seconds)) for seconds in (0.6, 2.31, 1.2)]
    longest = max(one.shape[1] for one, _ in heard)
    batch = torch.stack([torch.nn.functional.pad(one, (0, longest - one.shape[1])) for one, _ in heard])
    valid = torch.tensor([count for _, count in heard])
    together = model.embed_audio(batch, valid)
    for row, (one, count) in zip(together, heard, strict=True):
        told = torch.tensor([count]) if count < one.shape[1] else None
        tokens = model.config.audio_tokens(model.config.encoder_frames(count))
        alone = model.embed_audio(one[None], told)[0, :tokens]
        torch.testing.assert_close(row[:tokens], alone, atol=2e-5, rtol=1e-4)


def test_trimmed_audio_costs_what_was_said(model, tmp_path):
    """A family that hears whole windows pays for their silence until it is healed without; the others never did."""
    family = KNOWN[FAMILIES[model.config.family].stock.__name__]
    trimmed = _as_trimmed(model, True, tmp_path)
    frames = model_features(model, sound(1.0))[0].shape[1]
    short = model_features(trimmed, sound(1.0))[0].shape[1]
    assert short < 130 or short == model.config.audio.features.frame_multiple  # a chunk
    assert (short == frames) == family.true_length


def _as_trimmed(model, trimmed: bool, folder):
    """The same model, as it is read when its facts say that it was healed on trimmed audio."""
    if not trimmed:
        return model
    from prunella.speech_llm.stock import save_stock

    save_stock(model, folder)
    model.config.with_facts(trimmed=True).facts.save(folder)
    again = load(folder)
    assert again.config.facts.trimmed
    return again
