"""`prunella verify`: a bundle beside its model on speech, what it promises, and bundles of other models."""

import json

import numpy as np
import pytest
import torch
from tiny_families import FAMILY_NAMES, write_tiny

from prunella.cli import main
from prunella.device_runtime.base.errors import EngineError, UsageError
from prunella.device_runtime.bundle import open_bundle
from prunella.evaluation.manifest import read_manifest
from prunella.export.agreement import Difference, difference, pooled
from prunella.export.export import export
from prunella.export.promises import Promise, promises
from prunella.export.verify import verify
from prunella.quantize.bundle_writer import requantize
from prunella.speech_llm import load, save_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(small_speech_llm, tmp_path_factory):
    """A folder with the checkpoint, its float bundle and one of int8."""
    folder = tmp_path_factory.mktemp("verify")
    save_checkpoint(small_speech_llm, folder / "model")
    whole = export(small_speech_llm, "x86-cpu", folder / "fp32", recipe="fp32")
    requantize(whole, "int8", folder / "int8")
    return folder


@pytest.mark.step("verify", family="ultravox")
def test_a_float_bundle_says_what_its_model_says(tiny, noise_manifest, capsys):
    words = ["verify", str(tiny / "fp32"), str(tiny / "model"), "--speech", str(noise_manifest)]
    assert main([*words, "--clips", "3"]) == 0
    out = capsys.readouterr().out
    assert "3 clips" in out and "100.0 % equal" in out and "3 of 3 clips" in out


def test_a_quantised_one_keeps_another_promise(tiny, noise_manifest, capsys):
    words = ["verify", str(tiny / "int8"), str(tiny / "model"), "--speech", str(noise_manifest), "--json"]
    assert main(words) == 0
    body = json.loads(capsys.readouterr().out)
    (engine,) = body["engines"]
    assert body["kept"] and body["broken"] == [] and body["clips"] == 8
    assert engine["promises"]["logits"] == {"measure": "rms", "bound": 0.2}
    assert 1e-3 < engine["logits"]["rms"] < engine["logits"]["largest"]
    assert engine["equal_tokens"] + len(engine["others"]) == body["tokens"]


def test_more_than_is_promised_is_exit_code_1_and_says_what(tiny, small_speech_llm, noise_manifest, capsys):
    """A model of the same shapes with other weights."""
    state = {name: tensor.clone() for name, tensor in small_speech_llm.state_dict().items()}
    try:
        with torch.no_grad():
            small_speech_llm.layers[1].mlp.down_proj.weight.mul_(1.5)
        save_checkpoint(small_speech_llm, tiny / "other")
    finally:
        small_speech_llm.load_state_dict(state)
    words = ["verify", str(tiny / "fp32"), str(tiny / "other"), "--speech", str(noise_manifest)]
    assert main([*words, "--clips", "2"]) == 1
    said = capsys.readouterr()
    assert "onnx-fp32: the logits are" in said.err and "0.001 is allowed" in said.err
    assert "audio embeddings are" not in said.err  # the audio half is the same
    assert "standard deviations apart" in said.out


def test_a_bundle_of_another_model_is_refused_before_it_is_loaded(
    tiny, small_speech_llm, noise_manifest, capsys
):
    from prunella.pruning.blocks import Block
    from prunella.pruning.prune import prune

    pruned, _ = prune(small_speech_llm, (Block(2, 4),), bridge=False)
    save_checkpoint(pruned, tiny / "pruned")
    assert main(["verify", str(tiny / "fp32"), str(tiny / "pruned"), "--speech", str(noise_manifest)]) == 2
    assert "its layers 6, the model's 4" in capsys.readouterr().err
    with pytest.raises(UsageError, match="choose one of onnx, gguf"):
        verify(tiny / "fp32", small_speech_llm, read_manifest(noise_manifest), engine="mtmd")
    with pytest.raises(EngineError, match="no engine gguf"):
        verify(tiny / "fp32", small_speech_llm, read_manifest(noise_manifest), engine="gguf")
    assert main(["verify", str(tiny / "fp32"), "x", "--speech", str(noise_manifest), "--clips", "0"]) == 2


@pytest.mark.step("verify")
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family(family, noise_manifest, tmp_path):
    model = load(write_tiny(family, tmp_path / "model"))
    export(model, "x86-cpu", tmp_path / "bundle", recipe="fp32")
    report = verify(tmp_path / "bundle", tmp_path / "model", read_manifest(noise_manifest).sample(2))
    assert report.broken() == () and report.engines[0].equal_clips == 2


def test_a_prompt_or_features_of_another_model_are_told(tiny, small_speech_llm, noise_manifest, tmp_path):
    with pytest.raises(UsageError, match="its family is ultravox, the model's qwen3_asr"):
        verify(tiny / "fp32", load(write_tiny("qwen3_asr", tmp_path / "m")), read_manifest(noise_manifest))


def test_promises_are_those_of_the_recipe(tiny):
    whole = open_bundle(tiny / "fp32").manifest
    assert promises(whole, "onnx").logits == Promise("largest", 1e-3) == promises(whole, "onnx").audio
    int8 = open_bundle(tiny / "int8").manifest
    assert promises(int8, "onnx").audio == Promise("rms", 0.2)


def test_differences_are_counted_in_standard_deviations():
    expected = np.array([[0.0, 2.0], [0.0, 2.0]], np.float32)
    assert difference(expected, expected + 1, centered=True) == Difference(1.0, 0.0)
    assert difference(expected, expected[:1]).largest == float("inf")
    broken = difference(expected, expected * np.nan)
    assert not pooled([(Difference(0.0, 0.0), 4), (broken, 4)]).largest <= 1
    assert pooled([(Difference(1.0, 1.0), 1), (Difference(2.0, 3.0), 1)]) == Difference(2.0, 5**0.5)
