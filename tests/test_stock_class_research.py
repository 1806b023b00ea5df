"""The recipe of a real model in a stock class: assembled of tiny random parts, and compared with transformers' own words."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prunella.evaluation.manifest import read_manifest
from prunella.healing.clips import open_speech
from prunella.healing.heal import heal
from prunella.healing.plan import HealingPlan
from prunella.speech_llm import load
from prunella.speech_llm.torch_engine import model_transcriber

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def recipe(research_folder):
    research_folder("stock_class")


@pytest.fixture
def folder(small_speech_llm, tmp_path):
    from assemble import assemble, save, stock_tokenizer

    tokenizer = stock_tokenizer(small_speech_llm)
    save(assemble(small_speech_llm, tokenizer), tokenizer, tmp_path / "stock")
    return tmp_path / "stock"


def test_the_folder_is_read_with_the_prompt_of_its_own_template(folder, small_speech_llm):
    model = load(folder)
    assert model.config.family == "qwen2_audio" and model.config.text_style == "lower"
    assert model.prompt.text_style == "lower"
    before, _, after = model.prompt.segments
    assert before.text == "<|im_start|>user\nTranscribe the speech.\n<|audio_bos|>"
    assert after.text == "<|audio_eos|><|im_end|>\n<|im_start|>assistant\n"
    assert model.decoder.config.vocab_size % 64 == 0
    kept = model.stock.model.model
    for theirs, ours in (
        (small_speech_llm.audio_encoder, kept.audio_tower),
        (small_speech_llm.decoder.model.layers, kept.language_model.layers),
    ):
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], tensor)
    torch.testing.assert_close(kept.language_model.embed_tokens.weight, model.decoder.lm_head.weight)


def test_the_runtime_says_what_stock_generate_says(folder, noise_manifest):
    from compare import StockModel, compare_clip, summary

    transcriber = model_transcriber(load(folder)).with_options(guards=False)
    stock = StockModel(folder)
    clips = read_manifest(noise_manifest).utterances[2:5]
    found = summary([compare_clip(stock, transcriber, clip) for clip in clips])
    assert found["clips"] == found["same_tokens"] == 3
    assert found["tokens"] > 20 and found["differences"] == []
    assert found["largest_logit_difference"] < 1e-3


def test_healing_trains_the_encoder_but_not_where_its_frames_are(folder, noise_manifest):
    model = load(folder)
    before = {name: tensor.clone() for name, tensor in model.audio_encoder.state_dict().items()}
    plan = HealingPlan(steps=2, rank=2, train=("projector", "decoder", "encoder"))
    heal(model, plan, open_speech([noise_manifest]))
    changed = {
        name
        for name, tensor in model.audio_encoder.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert "tower.conv1.weight" in changed and "tower.embed_positions.weight" not in changed


def test_other_tokens_are_shown_with_the_gaps_of_both():
    from compare import Answer, compare, summary

    theirs = np.array([[0.0, 1.0, 0.0], [0.2, 0.1, 0.0], [0.0, 0.0, 3.0]], np.float32)
    ours = theirs + np.array([[0.0] * 3, [0.0, 0.25, 0.0], [0.0] * 3], np.float32)
    found = compare(Answer([1, 0, 2], theirs), [1, 1], ours, ends=(2,))
    (one,) = found.differences
    assert (one.place, one.stock, one.ours) == (1, "0", "1")
    assert one.stock_gap == pytest.approx(0.1) and one.our_gap == pytest.approx(0.15)
    assert not found.same and found.logit_error == pytest.approx(0.25)
    assert json.loads(json.dumps(summary([found])))["tokens_that_differ"] == 1


def test_the_ridge_finds_a_projector_that_there_is():
    from assemble import RidgeSums, fit_projector

    torch.manual_seed(0)
    linear, fitted = torch.nn.Linear(16, 24), torch.nn.Linear(16, 24)
    sums = RidgeSums(16, 24)
    with torch.no_grad():
        for _ in range(4):
            frames = torch.randn(100, 16)
            sums.add(frames, linear(frames))
    fit_projector(
        SimpleNamespace(model=SimpleNamespace(multi_modal_projector=SimpleNamespace(linear=fitted))), sums
    )
    torch.testing.assert_close(fitted.weight, linear.weight, atol=5e-3, rtol=0)
    torch.testing.assert_close(fitted.bias, linear.bias, atol=5e-3, rtol=0)


def test_frames_are_paired_with_what_the_source_hears_at_their_instant(folder, small_speech_llm):
    from assemble import paired

    samples = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    frames, wanted = paired(small_speech_llm, load(folder), samples)
    assert frames.shape == (25, 32) and wanted.shape == (25, 64)
    # 100 ms of the source are two and a half frames.
    assert torch.equal(wanted[0], wanted[1]) and not torch.equal(wanted[1], wanted[3])
