"""Every text decoder of the table in `docs/families.md`: cut exactly, its own loss, right on both engines; or refused in those words."""

from __future__ import annotations

import copy
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_families import ROWS, decoder_config
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
)

from prunella.cli import main
from prunella.device_runtime.base.errors import CheckpointError
from prunella.export import export as export_module
from prunella.export.audio_encoder import export_audio_encoder
from prunella.export.export import export_float
from prunella.export.onnx_gate import FLOAT_ERROR
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune as prune_model
from prunella.pruning.prune import save_pruned
from prunella.pruning.redundancy import RedundancyMap
from prunella.pruning.selection import Evidence, choose_blocks
from prunella.pruning.structure import check_cut, check_structure
from prunella.pruning.surgery import drop_layers
from prunella.quantize import gguf_probe, onnx_probe
from prunella.speech_llm.batches import batch_loss, text_batch
from prunella.speech_llm.checkpoint import load_decoder, save_decoder
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.load import TextLLM

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("decoder_matrix", ROOT / "docs" / "decoder_matrix.py")
assert spec is not None and spec.loader is not None
matrix = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = matrix
spec.loader.exec_module(matrix)

TOKENS = torch.randint(3, 256, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=ROWS)
def row(request):
    return request.param


@pytest.fixture(scope="module")
def status(row):
    return matrix.statuses(row)


@pytest.fixture(scope="module")
def decoder(row):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(decoder_config(row), dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def block(status):
    """In the middle, out of step with every pattern of layers where the family takes that."""
    return Block(1, 5) if "groups of 4" in status["cut"] else Block(1, 3)


def without(decoder, layers):
    """The whole model with `layers` as identities: what a cut must say."""
    idle = copy.deepcopy(decoder)
    for layer in layers:
        module = decoder_view(idle).layers[layer]
        module.forward = lambda hidden_states, *_, **__: hidden_states
    return idle


@torch.inference_mode()
def test_a_cut_is_exact_after_a_reload(decoder, status, byte_level_tokenizer, tmp_path):
    if status["cut"].startswith("no"):
        with pytest.raises(CheckpointError) as refused:
            prune_model(TextLLM(decoder, byte_level_tokenizer), [Block(1, 3)])
        assert f"no: {refused.value}" == status["cut"]
        return
    cuts = [[block(status)]]
    if status["cut"] == "yes":
        cuts.append([Block(0, 1), Block(2, 3)])
    for number, cut in enumerate(cuts):
        pruned, report = prune_model(TextLLM(decoder, byte_level_tokenizer), cut)
        expected = without(decoder, [layer for one in cut for layer in one.layers])(
            TOKENS, use_cache=False
        ).logits
        assert expected.std() > 0.1
        save_pruned(pruned, report, tmp_path / str(number))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / str(number), dtype=torch.float32)
        torch.testing.assert_close(again(TOKENS, use_cache=False).logits, expected, atol=1e-4, rtol=1e-4)
        first = again(TOKENS[:, :30], use_cache=True)
        then = again(TOKENS[:, 30:31], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(then[:, 0], expected[:, 30], atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_the_loss_is_the_models_own(decoder, status):
    if status["loss"] != "yes":
        with pytest.raises(CheckpointError) as refused:
            text_batch(decoder, TOKENS.tolist())
        assert f"no: {refused.value}" == status["loss"]
        return
    loss, count = batch_loss(decoder, text_batch(decoder, TOKENS.tolist()))
    expected = float(decoder(input_ids=TOKENS, labels=TOKENS).loss)
    assert loss / count == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def audio_half(speech_llm_around, tmp_path_factory):
    """One for all decoders, and its graph: what a test of decoders need not make anew."""
    model, folder = speech_llm_around(decoder_config("llama")), tmp_path_factory.mktemp("audio")
    export_audio_encoder(model, folder)
    return model, folder


@pytest.fixture
def cheaply(audio_half, monkeypatch):
    """Without an export of the audio half, and without programs of their own for what compares the engines."""
    shared, folder = audio_half

    def copied(_model, out):
        shutil.copytree(folder, out, dirs_exist_ok=True)

    monkeypatch.setattr(export_module, "export_audio_encoder", copied)
    monkeypatch.setattr(
        onnx_probe, "_in_child", lambda *paths: onnx_probe.main([str(path) for path in paths])
    )
    monkeypatch.setattr(
        gguf_probe, "_in_child", lambda what, *paths: gguf_probe.main([what, *map(str, paths)])
    )
    return shared


@pytest.mark.slow
@pytest.mark.native
def test_engines_say_what_the_cut_model_says(row, status, cheaply, speech_llm_around, tmp_path):
    if status["GGUF"] == "yes":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = speech_llm_around(decoder_config(row))
    model.audio_encoder.load_state_dict(cheaply.audio_encoder.state_dict())
    model.projector.load_state_dict(cheaply.projector.state_dict())
    for engine, recipe in (("ONNX", "fp32"), ("GGUF", "F32")):
        if status[engine] != "yes":
            with pytest.raises(CheckpointError) as refused:
                export_float(model, "x86-cpu", tmp_path / engine, recipe=recipe)
            assert f"no: {refused.value}" == status[engine]
            assert not (tmp_path / engine).exists()
    recipes = [name for engine, name in (("ONNX", "fp32"), ("GGUF", "F32")) if status[engine] == "yes"]
    if not recipes:
        return
    cut = model.with_decoder(drop_layers(model.decoder, [block(status)]))
    bundle = export_float(cut, "x86-cpu", tmp_path / "out", recipe="+".join(recipes))
    facts = bundle.manifest.provenance
    assert facts["onnx_gate"]["embedding_error"] < FLOAT_ERROR
    if "fp32" in recipes:
        assert 0 < facts["onnx_gate"]["logit_error"] < FLOAT_ERROR
    if "F32" in recipes:
        rounding = 10 if "gemma" in row else 1  # ggml's GELU is a table of half floats
        assert 0 < facts["gguf_gate"]["logit_error"] < rounding * 1e-3


def test_the_table_is_what_the_code_says():
    page = matrix.PAGE.read_text(encoding="utf-8")
    assert matrix.between(page) == matrix.table(), "run docs/decoder_matrix.py"


def test_what_a_configuration_has_for_single_layers_goes_with_them():
    """Gemma 4's layers of full attention have wider heads, by number in the file."""
    decoder = AutoModelForCausalLM.from_config(decoder_config("gemma4_text"))
    whole = decoder.config.to_dict()["per_layer_config"]
    assert whole == {"5": {"head_dim": 512}}
    pruned = drop_layers(decoder, [Block(1, 3)])
    check_structure(pruned)
    assert pruned.config.to_dict()["per_layer_config"] == {"3": whole["5"]}
    assert decoder.config.to_dict()["per_layer_config"] == whole


def test_a_pattern_by_numbers_is_spelled_out():
    decoder = AutoModelForCausalLM.from_config(decoder_config("qwen3_moe, plain layers"))
    pruned = drop_layers(decoder, [Block(1, 2), Block(4, 5)])
    assert (pruned.config.mlp_only_layers, pruned.config.decoder_sparse_step) == ([0, 1], 1)
    check_structure(pruned)
    pruned.config.mlp_only_layers = [0]
    with pytest.raises(
        CheckpointError, match=r"layer 1 .* have mlp.class = Qwen3MoeSparseMoeBlock, not Qwen3MoeMLP"
    ):
        check_structure(pruned)


def test_a_cut_that_is_not_exact_is_refused_before_work(byte_level_tokenizer, tmp_path, capsys):
    decoder = AutoModelForCausalLM.from_config(decoder_config("smollm3"))
    check_cut(decoder, [], 4)
    random = RedundancyMap(8, {"text": np.random.default_rng(0).random((9, 9))}, {"text": 1})
    assert choose_blocks(Evidence(decoder, random), 3, "angular") == (Block(5, 8),)  # no other can be
    save_decoder(decoder, byte_level_tokenizer, tmp_path / "model")
    arguments = ["--block", "1:3", "--text", str(tmp_path / "there is no text"), "-o", str(tmp_path / "out")]
    assert main(["prune", str(tmp_path / "model"), *arguments]) == 2
    assert "whole groups of 4 layers" in capsys.readouterr().err
    gemma = AutoModelForCausalLM.from_config(decoder_config("gemma4_text"))
    with pytest.raises(CheckpointError, match=r"layer 4 of the cut model would have self_attn.* = "):
        check_cut(gemma, [Block(5, 6)], 1)


@torch.inference_mode()
def test_of_a_model_that_also_sees_the_text_half_is_taken(byte_level_tokenizer, tmp_path):
    text = decoder_config("gemma3_text")
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    ).eval()
    whole.save_pretrained(tmp_path / "whole")
    byte_level_tokenizer.save_pretrained(tmp_path / "whole")
    decoder, tokenizer = load_decoder(tmp_path / "whole")
    assert type(decoder) is Gemma3ForCausalLM and decoder.config.model_type == "gemma3_text"
    torch.testing.assert_close(decoder(TOKENS).logits, whole(TOKENS).logits)
    pruned, report = prune_model(TextLLM(decoder, tokenizer), [Block(1, 3)])
    assert save_pruned(pruned, report, tmp_path / "cut").max_logit_difference < 1e-4
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "cut")) is Gemma3ForCausalLM
