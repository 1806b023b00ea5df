"""Every family of stock speech LLMs, on tiny random checkpoints of its real class: each step against transformers itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_families import FAMILIES, FAMILY_NAMES, other_size, stock_features, write_tiny

import prunella.cli
from prunella.device_runtime.opening import open_transcriber
from prunella.evaluation.manifest import read_manifest
from prunella.export.export import export
from prunella.pruning.analyze import analyze
from prunella.pruning.blocks import Block
from prunella.pruning.calibration import speech_batches, speech_calibration
from prunella.pruning.prune import prune, save_pruned
from prunella.speech_llm import load
from prunella.speech_llm.batches import speech_batch, speech_example
from prunella.speech_llm.stock import assembled
from prunella.speech_llm.torch_engine import model_transcriber

CLIPS = Path(__file__).parents[2] / "examples" / "clips"
CUTS = {"a middle block": (Block(2, 4),), "a set with gaps": (Block(1, 2), Block(3, 4))}
NO_LANGUAGE = {
    "fun_asr_nano": "it would stand before the audio, and what stands there is prefilled once for all utterances",
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def folder(request, tmp_path_factory):
    return write_tiny(request.param, tmp_path_factory.mktemp("families") / request.param)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.mark.step("recognise")
def test_it_is_recognised_by_its_class(folder, model):
    assert model.config.family == json.loads((folder / "config.json").read_text())["model_type"]
    assert len(model.view) == 6
    assert (
        assembled(model).config.architectures
        == json.loads((folder / "config.json").read_text())["architectures"]
    )


@pytest.mark.step("analyze")
def test_the_map_is_that_of_the_stock_models_hidden_states(model, noise_manifest):
    clip = read_manifest(noise_manifest).utterances[3]
    found = analyze(model, speech=speech_batches(model, [clip])).maps["speech"]
    inputs = stock_inputs(model, clip.load())
    with torch.inference_mode():
        states = assembled(model)(**inputs, output_hidden_states=True).hidden_states
    heard = inputs["input_ids"][0] == 4
    for start, size in [(0, 1), (1, 3), (2, 2)]:  # the last state is behind a norm
        before, behind = (states[at][0, heard].double() for at in (start, start + size))
        angles = torch.arccos(torch.cosine_similarity(before, behind)) / torch.pi
        # Behind a recording a whole window is silence, a class of its own.
        classes = [kind for kind in ("audio", "silence") if kind in found.counts]
        assert found.distance(classes)[start, size] == pytest.approx(float(angles.mean()), abs=1e-4)


@pytest.mark.step("cut", "stock reload")
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_is_exact_after_reload_with_sound_at_all_positions(model, noise_manifest, tmp_path, cut):
    """Against the stock model whose cut layers are identities."""
    examples = [speech_example(model, one) for one in read_manifest(noise_manifest).utterances[:2]]
    pruned, report = prune(model, CUTS[cut], bridge=False)
    saved = save_pruned(pruned, report, tmp_path / "cut")
    assert saved.max_logit_difference < 1e-4
    again = load(tmp_path / "cut")
    batch = speech_batch(again, examples)
    found = again.decoder(inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask).logits
    gone = {layer for block in CUTS[cut] for layer in block.layers}
    handles = [
        layer.register_forward_hook(
            lambda _, args, kwargs, out: args[0] if args else kwargs["hidden_states"], with_kwargs=True
        )
        for number, layer in enumerate(model.layers)
        if number in gone
    ]
    try:
        whole = speech_batch(model, examples)
        expected = model.decoder(
            inputs_embeds=whole.inputs_embeds, attention_mask=whole.attention_mask
        ).logits
    finally:
        for handle in handles:
            handle.remove()
    heard = batch.is_token
    torch.testing.assert_close(found[heard], expected[heard], atol=1e-4, rtol=1e-4)
    assert load(tmp_path / "cut").config.provenance["pruning"]


@pytest.mark.step("bridge", "stock reload")
def test_a_bridge_is_fitted_and_saved_in_the_stock_class(model, noise_manifest, tmp_path):
    calibration = speech_calibration(model, read_manifest(noise_manifest))
    pruned, report = prune(model, CUTS["a middle block"], calibration=calibration)
    save_pruned(pruned, report, tmp_path / "bridged")
    body = json.loads((tmp_path / "bridged" / "config.json").read_text())
    assert body.get("text_config", body)["num_hidden_layers"] == 4
    stock = type(model.stock.model).from_pretrained(tmp_path / "bridged")
    theirs = dict(stock.named_parameters())
    for name, tensor in assembled(pruned).named_parameters():
        torch.testing.assert_close(theirs[name], tensor, msg=name)


@pytest.mark.step("heal")
def test_three_steps_of_healing_leave_a_stock_checkpoint(folder, noise_manifest, tmp_path):
    out = tmp_path / "healed"
    arguments = ["heal", str(folder), "--speech", str(noise_manifest), "--steps", "3", "-o", str(out)]
    assert prunella.cli.main(arguments) == 0
    healed = load(out)
    assert healed.config.provenance["healing"]
    before = dict(load(folder).named_parameters())
    changed = [name for name, tensor in healed.named_parameters() if not torch.equal(tensor, before[name])]
    assert any("projector" in name for name in changed) and any("layers" in name for name in changed)


@pytest.mark.step("ONNX gate", "transcribe")
def test_a_bundle_says_what_stock_generate_says(model, noise_manifest, tmp_path):
    """Token for token, with the family's own prompt, on the bundle that passed the gate."""
    said = bundle_and_stock(model, read_manifest(noise_manifest).utterances[:4], tmp_path / "bundle")
    assert min(map(len, said)) > 3


def test_a_bundle_of_another_size_says_it_too(model, noise_manifest, tmp_path):
    """Odd head counts, one head for all keys, widths that differ, 80 bins, the head tied the other way."""
    family = model.config.family
    other = load(write_tiny(family, tmp_path / family, **other_size(family)))
    assert any(bundle_and_stock(other, read_manifest(noise_manifest).utterances[:4], tmp_path / "bundle"))


@pytest.mark.parametrize("folder", ["qwen3_asr"], indirect=True)
def test_twenty_clips_of_speech_are_heard_alike(model, tmp_path):
    clips = [
        one
        for kind in ("evaluation", "calibration")
        for one in read_manifest(CLIPS / f"{kind}.jsonl").utterances
    ]
    assert len(bundle_and_stock(model, clips[:20], tmp_path / "bundle")) == 20


def bundle_and_stock(model, utterances, out) -> list[list[int]]:
    """Export and compare with `generate`, its inputs made by transformers' own feature extractor; what both said.

    The fourth clip is told to be German, where the model can be told so.
    """
    bundle = export(model, "x86-cpu", out, recipe="fp32")
    gate = bundle.manifest.provenance["onnx_gate"]
    assert gate["logit_error"] < 1e-3 and gate["embedding_error"] < 1e-3
    transcriber = open_transcriber(out, threads=1).with_options(guards=False)
    stock = assembled(model)
    said = []
    for number, utterance in enumerate(utterances):
        language = "de" if model.prompt.languages and number == 3 else ""
        samples = utterance.load()
        found = transcriber.with_language(language).transcribe(samples).segments[0]
        said.append(list(found.tokens))
        count = len(found.tokens) + (found.finish_reason == "eos")
        inputs = stock_inputs(model, samples, language)
        ids = stock.generate(**inputs, max_new_tokens=count, do_sample=False)
        expected = ids[0, inputs["input_ids"].shape[1] :].tolist()
        if found.finish_reason == "eos":
            assert expected.pop() in model.prompt.eos_ids
        assert said[-1] == expected
    return said


@pytest.mark.step("language")
def test_a_language_reaches_the_prompt(model, noise_manifest):
    """What is said then is what the stock class says behind that prompt."""
    if not model.prompt.languages:
        pytest.xfail(
            NO_LANGUAGE.get(
                model.config.family, "the prompt that its processor makes has no place for a language"
            )
        )
    told = model.prompt.with_language("de")
    assert told.after_ids != model.prompt.after_ids
    samples = read_manifest(noise_manifest).utterances[3].load()
    transcriber = model_transcriber(model).with_options(guards=False).with_language("de")
    found = transcriber.transcribe(samples).segments[0].tokens
    inputs = stock_inputs(model, samples, "de")
    ids = assembled(model).generate(**inputs, max_new_tokens=len(found), do_sample=False)
    expected = ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(found) == [token for token in expected if token not in told.eos_ids]
    assert len(found) > 3


@pytest.mark.step("language", family="ultravox")
def test_ultravox_takes_no_language(small_speech_llm):
    assert not small_speech_llm.prompt.languages
    pytest.xfail("the chat template of its decoder has no place for a language")


@pytest.mark.step("stock reload", family="ultravox")
def test_ultravox_has_a_folder_of_its_own():
    if not hasattr(transformers, "UltravoxModel"):
        pytest.xfail(
            "transformers has no class for it; the folder's decoder is read by any loader of causal LMs"
        )


def stock_inputs(model, samples: np.ndarray, language: str = "") -> dict[str, torch.Tensor]:
    """input_ids, features and their mask by transformers' extractors."""
    prompt = model.prompt.with_language(language)
    family = model.config.family
    features = stock_features(family, samples, model.config.audio.features.num_mel_bins)
    mask = features.get(FAMILIES[family].mask)
    along = 1 if FAMILIES[family].frames_first else 2
    frames = features[FAMILIES[family].features].shape[along] if mask is None else int(mask.sum())
    count = model.config.audio_tokens(model.config.encoder_frames(frames))
    ids = [*prompt.before_ids, *prompt.audio_span(count, 4), *prompt.after_ids]
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        **features,
    }
