"""The numpy log-mel against transformers' WhisperFeatureExtractor, and against torch for its kin on the HTK scale."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunella.device_runtime.bundle import FeatureSpec
from prunella.device_runtime.sound.audio import load_audio
from prunella.device_runtime.sound.features import features
from prunella.device_runtime.sound.log_mel import log_mel

CLIPS = sorted((Path(__file__).parents[3] / "examples" / "clips" / "evaluation").glob("*.flac"))


def _signals() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    click = np.zeros(20_000, np.float32)
    click[9_000] = 1.0
    return {
        "noise": rng.normal(0, 0.1, 47_000),
        "loud noise": rng.normal(0, 3.0, 16_000),
        "tone": 0.9 * np.sin(0.3 * np.arange(30_000)),
        "click": click,
        "zeros": np.zeros(1_600),
        "one sample": np.ones(1),
        **{clip.name: load_audio(clip) for clip in CLIPS},
    }


@pytest.mark.parametrize("bins", [80, 128])
def test_equals_the_whisper_feature_extractor(bins):
    from transformers import WhisperFeatureExtractor

    assert CLIPS, "the committed evaluation clips are gone"
    extractor = WhisperFeatureExtractor(feature_size=bins)
    for name, signal in _signals().items():
        samples = np.pad(np.asarray(signal, np.float32), (0, FeatureSpec().padded(len(signal)) - len(signal)))
        expected = extractor(
            samples, sampling_rate=16_000, padding="longest", truncation=False, return_tensors="np"
        ).input_features[0]
        found = log_mel(samples, bins)
        assert found.dtype == np.float32
        assert found.shape == expected.shape == (bins, len(samples) // 160), name
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0, err_msg=name)
        padded, valid = features(signal, FeatureSpec(num_mel_bins=bins))
        np.testing.assert_array_equal(padded, found)
        assert valid == found.shape[1]


GRANITE = FeatureSpec(
    min_samples=320, multiple=1, extra=0, frame_multiple=15, valid="floor", n_fft=512, mel_scale="htk",
    last_frame=True, stack=2, stack_step=2,
)  # fmt: skip


def test_equals_what_granite_speech_hears():
    from tiny_families import htk_pairs

    for name, signal in _signals().items():
        expected = htk_pairs(signal)
        found, valid = features(signal, GRANITE)
        assert found.dtype == np.float32 and len(found) == GRANITE.width == 160
        assert valid == len(expected) and found.shape[1] == -(-valid // 15) * 15, name
        np.testing.assert_allclose(found[:, :valid], expected.T, atol=1e-4, rtol=0, err_msg=name)
        assert not found[:, valid:].any()


@given(st.integers(1, 100_000), st.sampled_from([1_280, 1_600, 2_560]), st.sampled_from([0, 1_600]))
def test_padding_is_the_fewest_whole_stacks_and_the_extra(length, per_token, extra):
    padded = FeatureSpec(multiple=per_token, extra=extra).padded(length)
    assert (padded - extra) % per_token == 0
    assert 0 <= padded - extra - length < per_token


@pytest.mark.parametrize("samples", [np.zeros(200), np.zeros((2, 1_600)), np.zeros(0)])
def test_refuses_what_has_no_window(samples):
    with pytest.raises(ValueError, match="log_mel takes"):
        log_mel(samples)


def test_costs_little_more_than_its_spectra():
    samples = np.random.default_rng(0).normal(0, 0.1, 160_000).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160]
    spent: dict[str, list[float]] = {"all": [], "spectra": []}
    for _ in range(9):
        for name, work in (("all", lambda: log_mel(samples)), ("spectra", lambda: abs(np.fft.rfft(frames)))):
            began = time.thread_time()
            work()
            spent[name].append(time.thread_time() - began)
    # Twice as much; with a loop over frames seven times. The fastest of each: what others do can only add.
    assert min(spent["all"]) < 4 * min(spent["spectra"])
