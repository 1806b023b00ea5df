"""Decoders of every family as GGUF: llama.cpp says what PyTorch says, and models that it would run wrongly are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from transformers import (
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.engines.llama_decoder import LlamaDecoder
from prunella.export.gguf_decoder import write_decoder
from prunella.export.gguf_gate import check_decoder_file, compare_logits, rounded_as_stored
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
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
    "long_factor": [4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 1.5,
    "attention_multiplier": 0.0625,
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
GEMMA_4B = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
EXPERTS = {
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
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
    "granite": GraniteConfig(**SIZES, **GRANITE),
    "phi3": Phi3Config(**SIZES, original_max_position_embeddings=2_048),
    "phi3-longrope": Phi3Config(
        **SIZES | {"max_position_embeddings": 8_192},
        original_max_position_embeddings=2_048,
        partial_rotary_factor=0.75,
        rope_parameters=LONGROPE,
    ),
    "ministral": MinistralConfig(**SIZES, head_dim=16, sliding_window=2_048),
    "olmo2": Olmo2Config(**SIZES | {"tie_word_embeddings": False}),
    "cohere2": Cohere2Config(
        **SIZES | {"num_hidden_layers": 5, "initializer_range": 0.6}, logit_scale=0.25, sliding_window=16
    ),
    "gemma": GemmaConfig(**SIZES, head_dim=32),
    "gemma2": Gemma2Config(**SIZES, **GEMMA, final_logit_softcapping=20.0),
    "gemma3": Gemma3TextConfig(**SIZES, **GEMMA),
    "gemma3-4b": Gemma3TextConfig(**SIZES, **GEMMA, final_logit_softcapping=20.0, rope_parameters=GEMMA_4B),
    # As cuts leave them: out of step with the layer's number.
    "gemma2-cut": Gemma2Config(**SIZES, **GEMMA, layer_types=["sliding_attention"] * 2 + ["full_attention"]),
    "gemma3-cut": Gemma3TextConfig(
        **SIZES, **GEMMA, layer_types=["full_attention", "sliding_attention", "full_attention"]
    ),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS),
}


def followed(decoder, prompt, said):
    """Logits behind the prompt and each token that is said, in PyTorch."""
    with torch.inference_mode():
        rows = decoder(input_ids=torch.tensor([[*prompt, *said]]), use_cache=False).logits[0]
    return rows[len(prompt) - 1 : -1].numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_says_what_pytorch_says(name, speech_llm_around, tmp_path):
    model = speech_llm_around(CONFIGS[name])
    path = write_decoder(model, tmp_path / "decoder.gguf", kind="F32")
    assert check_decoder_file(model, path) == len(read_gguf(path).tensors)
    generator = np.random.default_rng(1)
    prompt = generator.integers(3, 256, 100).tolist()  # beyond the 64 that scaled rotations begin at
    said = generator.integers(3, 256, 24).tolist()
    logits = followed(
        rounded_as_stored(model.decoder, "F32"), prompt, said
    )  # ggml's GELU is a table of halves
    assert logits.std() >= 1
    assert len(set(logits.argmax(axis=1))) > 3

    decoder = LlamaDecoder(path, positions=256, threads=1, exact=True)
    vectors = model.view.embeddings(torch.tensor(prompt[:40])).numpy()  # as audio comes
    decoder.feed_embeddings(vectors, keep=0)
    row, rows = decoder.feed_tokens(prompt[40:])[0], []
    for token in said:
        rows.append(row.copy())
        row = decoder.feed_tokens([token])[0]
    assert np.stack(rows).argmax(axis=1).tolist() == logits.argmax(axis=1).tolist()
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
        (GemmaConfig(**SIZES | {"tie_word_embeddings": False}, head_dim=16), "one of its own"),
        (Olmo2Config(**SIZES), "its embeddings: take"),
        (MinistralConfig(**SIZES, head_dim=16, sliding_window=128), "slides over 128"),
        (Phi3Config(**SIZES, sliding_window=128, original_max_position_embeddings=2_048), "slides over 128"),
        (
            Phi3Config(
                **SIZES,
                original_max_position_embeddings=512,
                partial_rotary_factor=0.75,
                rope_parameters=LONGROPE,
            ),
            "otherwise from the position 512 on",
        ),
        (
            Gemma2Config(**SIZES, **GEMMA | {"query_pre_attn_scalar": 24}),
            "root of 1/32, the model by that of 1/24",
        ),
        (Gemma2Config(**SIZES, **GEMMA, attn_logit_softcapping=None), "no attn_logit_softcapping"),
        (Gemma3TextConfig(**SIZES, **GEMMA, use_bidirectional_attention=True), "from left to right"),
        (
            Gemma3TextConfig(
                **SIZES,
                **GEMMA,
                rope_parameters=dict.fromkeys(GEMMA_4B, GEMMA_4B["full_attention"]),
            ),
            "sliding layers \\(linear",
        ),
        (Qwen3MoeConfig(**SIZES, **EXPERTS, mlp_only_layers=[1]), "layer 1 is a plain MLP"),
        (Qwen3MoeConfig(**SIZES, **EXPERTS, decoder_sparse_step=2), "layer 0 is a plain MLP"),
        (Qwen3MoeConfig(**SIZES, **EXPERTS | {"norm_topk_prob": False}), "do not add up to one"),
        (
            Lfm2Config(**SIZES, layer_types=["conv", "conv", "full_attention"]),
            "'lfm2' .*cannot be wound back",
        ),
    ],
)
def test_what_llama_cpp_would_run_wrongly_is_refused(config, message, speech_llm_around, tmp_path):
    model = speech_llm_around(config)
    with pytest.raises(CheckpointError, match=message):
        write_decoder(model, tmp_path / "decoder.gguf")
    assert not list(tmp_path.iterdir())
