"""The gate notices what loads silently and is wrong, by reading back and, apart from that, by llama.cpp's numbers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

import gguf
from transformers import LlamaConfig, Qwen2Config

from prunella.device_runtime.base.errors import CheckpointError, ExportError
from prunella.export import gguf_decoder, gguf_gate, gguf_mmproj
from prunella.export.gguf_decoder import write_decoder
from prunella.export.gguf_gate import (
    check_decoder_file,
    check_mmproj_file,
    check_tokenizer,
    compare_embeddings,
    compare_logits,
    gate,
)
from prunella.export.gguf_mmproj import write_mmproj
from prunella.quantize.gguf_files import read_gguf
from prunella.quantize.mmproj_storage import quantize_mmproj
from prunella.speech_llm.config import AudioEncoderConfig

pytestmark = pytest.mark.native

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "max_position_embeddings": 2_048,
}


@pytest.fixture(scope="module")
def llama(speech_llm_around):
    return speech_llm_around(LlamaConfig(**SIZES))


@pytest.fixture(scope="module")
def qwen2(speech_llm_around):
    return speech_llm_around(Qwen2Config(**SIZES))


@pytest.fixture(scope="module")
def sound_decoder(llama, tmp_path_factory):
    return write_decoder(llama, tmp_path_factory.mktemp("decoder") / "decoder-F16.gguf")


def edit(monkeypatch, module, name, change):
    """Make one of the writers' tables of tensors come out changed."""
    original = getattr(module, name)

    def changed(*arguments):
        tensors = dict(original(*arguments))
        change(tensors)
        return tensors

    monkeypatch.setattr(module, name, changed)


def test_sound_files_pass(llama, sound_decoder, tmp_path):
    mmproj = write_mmproj(llama, tmp_path / "mmproj.gguf")
    report = gate(llama, sound_decoder, "F16", mmproj, "F16", max_context=2_048)
    assert report.tensors == len(read_gguf(sound_decoder).tensors) + len(read_gguf(mmproj).tensors)
    assert 0 < report.logit_error < 0.1
    assert 0.999 < report.mmproj_cosine < 1


def test_a_wrong_permutation_fails_by_values_and_by_logits(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_decoder, "permute_heads", lambda rows, heads: rows)
    path = write_decoder(llama, tmp_path / "decoder.gguf", kind="F32")
    with pytest.raises(ExportError, match=r"attn_(q|k)\.weight differs"):
        check_decoder_file(llama, path)
    with pytest.raises(ExportError, match="standard deviations"):
        compare_logits(llama, path, "F32")


def test_what_rounding_does_to_a_model_is_no_fault_and_hides_none(
    llama, sound_decoder, tmp_path, monkeypatch
):
    """As if the model were one that says something else after any rounding."""
    monkeypatch.setattr(gguf_gate, "_LOGIT_ERROR", {"F16": 0.0})
    assert 0 < compare_logits(llama, sound_decoder, "F16") < 0.1
    monkeypatch.setattr(gguf_decoder, "permute_heads", lambda rows, heads: rows)
    path = write_decoder(llama, tmp_path / "decoder.gguf")
    with pytest.raises(ExportError, match="standard deviations"):
        compare_logits(llama, path, "F16")


def test_a_dropped_bias_of_the_decoder_fails(qwen2, tmp_path, monkeypatch):
    edit(monkeypatch, gguf_decoder, "decoder_tensors", lambda tensors: tensors.pop("blk.1.attn_q.bias"))
    path = write_decoder(qwen2, tmp_path / "decoder.gguf", kind="F32")
    with pytest.raises(ExportError, match=r"lacks blk\.1\.attn_q\.bias"):
        check_decoder_file(qwen2, path)
    with pytest.raises(ExportError):
        compare_logits(qwen2, path, "F32")


@pytest.mark.parametrize("name", ["a.blk.0.ffn_up.bias", "a.blk.1.attn_out.bias", "a.post_ln"])
def test_what_libmtmd_silently_does_without_fails(name, llama, sound_decoder, tmp_path, monkeypatch):
    def drop(tensors):
        for key in [key for key in tensors if key.startswith(name)]:
            del tensors[key]

    edit(monkeypatch, gguf_mmproj, "mmproj_tensors", drop)
    path = write_mmproj(llama, tmp_path / "mmproj.gguf")
    with pytest.raises(ExportError, match=f"lacks {name}"):
        check_mmproj_file(llama, path)
    with pytest.raises(ExportError, match="cosine"):
        compare_embeddings(llama, path, "F16", sound_decoder)


def test_swapped_halves_of_the_swiglu_fail(llama, sound_decoder, tmp_path, monkeypatch):
    def swap(tensors):
        tensors["mm.a.mlp.1.weight"] = np.roll(tensors["mm.a.mlp.1.weight"], 32, axis=0)

    edit(monkeypatch, gguf_mmproj, "mmproj_tensors", swap)
    path = write_mmproj(llama, tmp_path / "mmproj.gguf")
    with pytest.raises(ExportError, match=r"mm\.a\.mlp\.1\.weight differs"):
        check_mmproj_file(llama, path)
    with pytest.raises(ExportError, match="cosine"):
        compare_embeddings(llama, path, "F16", sound_decoder)


def test_a_crash_of_llama_cpp_is_a_failed_export(llama, sound_decoder, tmp_path, monkeypatch):
    def flatten(tensors):
        tensors["a.conv1d.1.bias"] = tensors["a.conv1d.1.bias"][:, 0]

    edit(monkeypatch, gguf_mmproj, "mmproj_tensors", flatten)
    path = write_mmproj(llama, tmp_path / "mmproj.gguf")
    with pytest.raises(ExportError, match=r"crashed on mmproj\.gguf \(SIGABRT"):
        compare_embeddings(llama, path, "F16", sound_decoder)
    with pytest.raises(ExportError, match=r"conv1d\.1\.bias has the shape \(32,\), should be \(32, 1\)"):
        check_mmproj_file(llama, path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.rope.freq_base", 9.0, r"the key llama\.rope\.freq_base is"),
        ("llama.attention.head_count_kv", 4, "head_count_kv"),
        ("tokenizer.ggml.eos_token_id", 1, "eos_token_id"),
        ("llama.logit_scale", 2.0, "unexpected key"),
    ],
)
def test_a_wrong_key_fails(key, value, message, llama, tmp_path, monkeypatch):
    original = gguf_decoder.decoder_keys
    with monkeypatch.context() as patch:
        patch.setattr(gguf_decoder, "decoder_keys", lambda *given: original(*given) | {key: value})
        path = write_decoder(llama, tmp_path / "decoder.gguf")
    with pytest.raises(ExportError, match=message):
        check_decoder_file(llama, path)


def test_a_vocabulary_that_splits_otherwise_fails(llama, tmp_path, monkeypatch):
    original = gguf_decoder.decoder_keys

    def joined(*given):
        keys = original(*given)
        tokens = keys["tokenizer.ggml.tokens"]
        return keys | {
            "tokenizer.ggml.tokens": [*tokens[:-1], "in"],
            "tokenizer.ggml.token_type": [*keys["tokenizer.ggml.token_type"][:-1], gguf.TokenType.NORMAL],
            "tokenizer.ggml.merges": ["i n"],
        }

    monkeypatch.setattr(gguf_decoder, "decoder_keys", joined)
    path = write_decoder(llama, tmp_path / "decoder.gguf")
    with pytest.raises(ExportError, match="tokenises"):
        check_tokenizer(llama, path)


def test_mmproj_in_8_bits(llama, sound_decoder, tmp_path):
    source = write_mmproj(llama, tmp_path / "mmproj-F16.gguf")
    file = quantize_mmproj(source, tmp_path / "mmproj-Q8_0.gguf", "Q8_0")
    kinds = {name: tensor.kind.name for name, tensor in file.tensors.items()}
    assert kinds["a.blk.0.ffn_up.weight"] == kinds["mm.a.mlp.1.weight"] == "Q8_0"
    assert kinds["a.conv1d.1.weight"] == "F16"
    assert kinds["a.position_embd.weight"] == kinds["a.conv1d.1.bias"] == kinds["a.post_ln.weight"] == "F32"
    check_mmproj_file(llama, file.path)
    assert compare_embeddings(llama, file.path, "Q8_0", sound_decoder) < 0.99999


@pytest.mark.parametrize("stack_factor", [4, 10])
def test_other_stack_factors(stack_factor, speech_llm_around, sound_decoder, tmp_path):
    model = speech_llm_around(LlamaConfig(**SIZES), stack_factor=stack_factor)
    path = write_mmproj(model, tmp_path / "mmproj.gguf")
    assert compare_embeddings(model, path, "F16", sound_decoder) > 0.999


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stack_factor": 8}, "counts 187 audio tokens and computes 188"),
        ({"projector_norm_eps": 1e-5}, "epsilon of 1e-6"),
        ({"encoder": AudioEncoderConfig(32, 2, 2, 64, max_source_positions=750)}, "needs 1500 positions"),
    ],
)
def test_what_libmtmd_cannot_run_is_refused(changes, message, speech_llm_around, tmp_path):
    model = speech_llm_around(LlamaConfig(**SIZES), **changes)
    with pytest.raises(CheckpointError, match=message):
        write_mmproj(model, tmp_path / "mmproj.gguf")
    assert not list(tmp_path.iterdir())
