"""Decoders of every family as GGUF: llama.cpp says what PyTorch says, and models that it would run wrongly are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from transformers import (
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.engines.llama_decoder import LlamaDecoder
from prunella.export.gguf_decoder import write_decoder
from prunella.export.gguf_gate import check_decoder_file, compare_logits
from prunella.quantize.gguf_files import read_gguf

pytestmark = pytest.mark.native

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "max_position_embeddings": 2_048,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama-one-layer-untied": LlamaConfig(**SIZES | {"num_hidden_layers": 1, "tie_word_embeddings": False}),
    "llama-wide-heads": LlamaConfig(**SIZES, head_dim=32),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-3.2": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama-linear": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "llama-yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES | {"tie_word_embeddings": False}, head_dim=32),
    "smollm3": SmolLM3Config(**SIZES | {"num_hidden_layers": 5}),
}


def greedy(model, prompt, steps):
    """Tokens, and the logits that they were chosen from, in PyTorch."""
    tokens, rows = list(prompt), []
    for _ in range(steps):
        with torch.inference_mode():
            rows.append(
                model.decoder(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].numpy()
            )
        tokens.append(int(rows[-1].argmax()))
    return tokens[len(prompt) :], np.stack(rows)


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_says_what_pytorch_says(name, speech_llm_around, tmp_path):
    model = speech_llm_around(CONFIGS[name])
    path = write_decoder(model, tmp_path / "decoder.gguf", kind="F32")
    assert check_decoder_file(model, path) == len(read_gguf(path).tensors)
    prompt = (
        np.random.default_rng(1).integers(3, 256, 100).tolist()
    )  # beyond the 64 that scaled rotations begin at
    expected, logits = greedy(model, prompt, 24)
    assert logits.std() >= 1
    assert len(set(expected)) > 3

    decoder = LlamaDecoder(path, positions=256, threads=1, exact=True)
    row, tokens, rows = decoder.feed_tokens(prompt)[0], [], []
    for _ in range(24):
        rows.append(row.copy())
        tokens.append(int(row.argmax()))
        row = decoder.feed_tokens(tokens[-1:])[0]
    assert tokens == expected
    np.testing.assert_allclose(np.stack(rows), logits, atol=1e-3 * logits.std())


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_floats(kind, speech_llm_around, tmp_path):
    model = speech_llm_around(CONFIGS["llama"])
    path = write_decoder(model, tmp_path / "decoder.gguf", kind=kind)
    check_decoder_file(model, path)
    assert 1e-4 < compare_logits(model, path, kind) < 0.5
    stored = {tensor.kind.name for tensor in read_gguf(path).tensors.values()}
    assert stored == {kind, "F32"}


def test_tokens_and_embeddings_can_be_wound_back(speech_llm_around, tmp_path):
    model = speech_llm_around(CONFIGS["qwen2"])
    path = write_decoder(model, tmp_path / "decoder.gguf", kind="F32")
    decoder = LlamaDecoder(path, positions=256, threads=1, exact=True)
    rows = decoder.feed_tokens([5, 6, 7, 8], keep=4).copy()
    decoder.truncate(2)
    assert decoder.position == 2
    np.testing.assert_allclose(decoder.feed_tokens([7, 8], keep=2), rows[2:], atol=1e-4)
    table = model.decoder.get_input_embeddings().weight.numpy()
    decoder.truncate(0)
    np.testing.assert_allclose(decoder.feed_embeddings(table[[5, 6, 7, 8]]), rows[3:], atol=1e-4)


def pruned(config, kept):
    """The configuration that surgery gives a decoder of which some layers are kept."""
    rope = [config.no_rope_layers[layer] for layer in kept]
    return SmolLM3Config(**SIZES | {"num_hidden_layers": len(kept)}, no_rope_layers=rope)


def test_a_cut_that_keeps_smollm3s_pattern_is_written(speech_llm_around, tmp_path):
    full = SmolLM3Config(**SIZES | {"num_hidden_layers": 9})
    model = speech_llm_around(pruned(full, [0, 1, 2, 3, 8]))
    path = write_decoder(model, tmp_path / "decoder.gguf", kind="F32")
    assert compare_logits(model, path, "F32") < 1e-3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            pruned(SmolLM3Config(**SIZES | {"num_hidden_layers": 9}), [0, 1, 3, 4, 5, 6, 7, 8]),
            "layer 2 breaks",
        ),
        (MistralConfig(**SIZES, sliding_window=128), "slides over 128"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "silu"),
        (
            LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "dynamic",
        ),
        (GemmaConfig(**SIZES, head_dim=16), "'gemma'"),
    ],
)
def test_what_llama_cpp_would_run_wrongly_is_refused(config, message, speech_llm_around, tmp_path):
    model = speech_llm_around(config)
    with pytest.raises(CheckpointError, match=message):
        write_decoder(model, tmp_path / "decoder.gguf")
    assert not list(tmp_path.iterdir())
