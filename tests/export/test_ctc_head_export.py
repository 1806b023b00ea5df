"""A CTC head goes with the audio encoder into the graph, and the runner hears the same letters as PyTorch."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from prunella.device_runtime.bundle import open_bundle
from prunella.device_runtime.engines.onnx_engine import OnnxEngine
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.transcript import Phrase
from prunella.export.export import export_float
from prunella.quantize.bundle_writer import requantize
from prunella.speech_llm.checkpoint import load_checkpoint, save_checkpoint
from prunella.speech_llm.ctc_head import ENGLISH
from prunella.speech_llm.torch_engine import TorchEngine, model_transcriber
from prunella.targets.profile import load_target

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lettered(tiny_model):
    model = copy.deepcopy(tiny_model)
    torch.manual_seed(0)
    model.add_ctc_head(ENGLISH)
    for parameter in model.ctc_head.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bundle(lettered, tmp_path_factory):
    return export_float(lettered, load_target("x86-cpu"), tmp_path_factory.mktemp("lettered") / "bundle")


@pytest.mark.parametrize("samples", [400, 1_600, 20_800, 100_001])
def test_letters_of_any_length(samples, lettered, bundle) -> None:
    audio = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    plain, exported = TorchEngine(lettered), OnnxEngine.open(bundle, threads=1)
    np.testing.assert_allclose(exported.encode(audio), plain.encode(audio), atol=1e-3)
    assert exported.ctc_log_probs.shape[1] == 1 + len(ENGLISH)
    assert plain.ctc_log_probs.std() > 0.5
    np.testing.assert_allclose(exported.ctc_log_probs, plain.ctc_log_probs, atol=1e-3)


def test_int4_hears_nearly_the_same(bundle, tmp_path, noise) -> None:
    plain, small = (
        OnnxEngine.open(which, threads=1) for which in (bundle, requantize(bundle, "int4", tmp_path / "int4"))
    )
    plain.encode(noise), small.encode(noise)
    assert np.abs(np.exp(small.ctc_log_probs) - np.exp(plain.ctc_log_probs)).mean() < 0.01


@pytest.mark.step("CTC head", family="ultravox")
def test_beams_say_the_same_in_pytorch_and_in_the_bundle(lettered, bundle, noise) -> None:
    plain, exported = model_transcriber(lettered), open_transcriber(bundle.path, threads=1)
    texts = set()
    for transcriber in (plain, exported):
        search = transcriber.with_options(beams=0, guards=False)  # the guards know that nobody speaks
        assert search.options.beams == 4
        found = search.transcribe(noise)
        assert found.segments[0].passes > 0
        texts.add(found.text)
    assert len(texts) == 1


def test_a_checkpoint_keeps_its_head(lettered, tmp_path, noise) -> None:
    again = TorchEngine(load_checkpoint(save_checkpoint(lettered, tmp_path / "model")))
    plain = TorchEngine(lettered)
    again.encode(noise), plain.encode(noise)
    np.testing.assert_array_equal(again.ctc_log_probs, plain.ctc_log_probs)


def test_padding_changes_no_letter(lettered) -> None:
    # In float64: in float32 a machine's kernels for two lengths may differ by more than the padding could.
    head = copy.deepcopy(lettered.ctc_head).double()
    encoded = torch.randn(2, 40, lettered.config.audio_encoder.d_model, dtype=torch.float64)
    frames = torch.tensor([25, 40])
    together = head(encoded, frames)
    torch.testing.assert_close(together[0, :13], head(encoded[:1, :25])[0])
    torch.testing.assert_close(together[1], head(encoded[1:])[0])


def test_a_bundle_without_a_head_still_opens(float_bundle, noise) -> None:
    engine = OnnxEngine.open(open_bundle(float_bundle.path), threads=1)
    engine.encode(noise)
    assert engine.ctc_log_probs is None


@pytest.mark.parametrize("beams", [1, 3])
def test_an_effort_reads_letters_and_phrases_do_not(bundle, noise, beams) -> None:
    opened = open_transcriber(bundle.path, threads=1, effort="exact").with_options(beams=beams, guards=False)
    exact = replace(opened, prompt=replace(opened.prompt, text_style="lower"))
    said = exact.transcribe(noise)
    sure, none = (
        exact.with_options(replace(exact.options, fast_entropy=entropy, fast_margin=0.0)).with_options(
            effort="fast"
        )
        for entropy in (100.0, 0.0)
    )
    letters = sure.transcribe(noise)
    assert letters.timings.prefill < said.timings.prefill
    assert [segment.passes for segment in letters.segments] == [0]
    assert letters.text and set(letters.text) <= set(ENGLISH)
    assert exact.tokenizer.decode(list(letters.tokens)).strip() == letters.text
    assert [(one.t0, one.t1, one.finish_reason) for one in letters.segments] == [(0.0, 1.3, "eos")]
    if beams == 1:
        assert none.transcribe(noise).tokens == said.tokens
    phrases = [Phrase("go forward", "go forward")]
    assert sure.with_phrases(phrases).transcribe(noise).finish_reason in ("phrase", "no-phrase")
