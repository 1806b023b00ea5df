"""Tiny configurations of decoder families that differ in what they multiply by, cap, or look back at; those of the table in docs/families.md."""

from __future__ import annotations

from transformers import (
    CONFIG_MAPPING,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "granite": GraniteConfig(
        **SIZES, logits_scaling=8.0, embedding_multiplier=12.0, residual_multiplier=0.22
    ),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0, sliding_window=4),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4),
    "cohere": CohereConfig(**SIZES, logit_scale=0.0625),
    "cohere2": Cohere2Config(**SIZES, logit_scale=0.0625),
    "phi3": Phi3Config(**SIZES),
    "smollm3": SmolLM3Config(**SIZES),
    "olmo2": Olmo2Config(**SIZES),
}


# What people put under an audio encoder, as `docs/families.md` lists it: row of the table → model_type and fields.
_SIX = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "max_position_embeddings": 4_096,
}
_WIDE = {"head_dim": 32}
_GEMMA = _WIDE | {"query_pre_attn_scalar": 32, "sliding_window": 16}
_EXPERTS = _WIDE | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
_GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 1.5,
    "attention_multiplier": 0.0625,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + step / 8 for step in range(8)],
    "long_factor": [4.0 + step for step in range(8)],
}
_ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 16}),
    "ministral": ("ministral", {"head_dim": 16, "sliding_window": 4_096}),
    "ministral, window": ("ministral", {"head_dim": 16, "sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 16}),
    "qwen3": ("qwen3", _WIDE),
    "qwen3_moe": ("qwen3_moe", _EXPERTS),
    "qwen3_moe, plain layers": ("qwen3_moe", _EXPERTS | {"mlp_only_layers": [2], "decoder_sparse_step": 2}),
    "smollm3": ("smollm3", {"num_hidden_layers": 8}),
    "gemma": ("gemma", _WIDE),
    "gemma2": ("gemma2", _GEMMA | {"final_logit_softcapping": 20.0}),
    "gemma3_text": (
        "gemma3_text",
        _GEMMA | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2},
    ),
    "gemma3n_text": (
        "gemma3n_text",
        {"head_dim": 16, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 320},
    ),
    "gemma4_text": ("gemma4_text", {"head_dim": 16, "hidden_size_per_layer_input": 0}),
    "phi3": ("phi3", {"original_max_position_embeddings": 4_096}),
    "phi3, longrope": (
        "phi3",
        {"original_max_position_embeddings": 2_048, "rope_parameters": _LONGROPE},
    ),
    "granite": ("granite", _GRANITE),
    "olmo2": ("olmo2", {}),
    "cohere2": ("cohere2", {"logit_scale": 0.25, "initializer_range": 0.6, "sliding_window": 16}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "conv", "full_attention"] * 2}),
}


def decoder_config(row: str) -> PretrainedConfig:
    """The tiny decoder of a row of the table."""
    kind, fields = _ROWS[row]
    return CONFIG_MAPPING[kind](**{**_SIX, **fields})


ROWS = tuple(_ROWS)
