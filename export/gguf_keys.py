"""The keys that a decoder's configuration becomes in a GGUF file, and the tables of rotary factors that stand beside the weights."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
from transformers import PretrainedConfig

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import CheckpointError

Keys = dict[str, int | float | str | list[int]]
ROPE_FACTORS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_SLIDING = "sliding_attention"


def head_size(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def slides(config: PretrainedConfig) -> list[int]:
    """For every layer, 1 where its attention slides over a window, else 0."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return [int(kind == _SLIDING) for kind in kinds]
    everywhere = bool(getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
    return [int(everywhere)] * config.num_hidden_layers


def rope(config: PretrainedConfig, kind: str = "full_attention") -> dict[str, Any]:
    """Settings of the rotary embedding, of one kind of layers where the kinds have different ones."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    return dict(found.get(kind) or {}) if "full_attention" in found or _SLIDING in found else found


def _rope_base(config: PretrainedConfig, kind: str = "full_attention") -> float:
    base: Any = rope(config, kind).get("rope_theta") or getattr(config, "rope_theta", None)
    return float(base or 10_000.0)


def hyper_parameters(config: PretrainedConfig, arch: gguf.MODEL_ARCH, own: Keys) -> Keys:
    """Keys of the model, without `general.*`: name → value; whole numbers are uint32, others float32.

    Args:
        config: of the decoder.
        arch: of llama.cpp.
        own: keys of the family's own, without its name.
    """
    name = gguf.MODEL_ARCH_NAMES[arch]
    size = head_size(config)
    share = float(rope(config).get("partial_rotary_factor") or 1.0)
    keys: Keys = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "attention.key_length": size,
        "attention.value_length": size,
    }
    if hasattr(config, "rms_norm_eps"):
        keys["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    keys |= {"rope.dimension_count": int(share * size), "rope.freq_base": _rope_base(config)}
    keys |= _rope_scaling(rope(config), config) | own
    return {f"{name}.{key}": value for key, value in keys.items()}


def granite_keys(config: Any) -> Keys:
    """Granite's factors."""
    return {
        "attention.scale": float(config.attention_multiplier),
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "logit_scale": float(config.logits_scaling),
    }


def experts_keys(config: Any) -> Keys:
    """Of a mixture of experts."""
    return {
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.moe_intermediate_size,
    }


def _window_keys(config: Any) -> Keys:
    """Which layers slide is written layer by layer: from the number alone, llama.cpp would get it wrong after a cut."""
    return {
        "attention.sliding_window": int(config.sliding_window),
        "attention.sliding_window_pattern": slides(config),
    }


def cohere2_keys(config: Any) -> Keys:
    """Cohere 2's norms, its factor of the logits, and its windows: the layers that slide are those that rotate."""
    return {
        "attention.layer_norm_epsilon": float(config.layer_norm_eps),
        "logit_scale": float(config.logit_scale),
        **_window_keys(config),
    }


def gemma2_keys(config: Any) -> Keys:
    """Gemma 2's caps and windows."""
    return {
        "attn_logit_softcapping": float(config.attn_logit_softcapping),
        "final_logit_softcapping": float(config.final_logit_softcapping),
        **_window_keys(config),
    }


def gemma3_keys(config: Any) -> Keys:
    """Gemma 3's windows, whose layers have a rotary base of their own, and its cap."""
    cap = config.final_logit_softcapping
    capped: Keys = {"final_logit_softcapping": float(cap)} if cap else {}
    return capped | _window_keys(config) | {"rope.freq_base_swa": _rope_base(config, _SLIDING)}


def _rope_scaling(settings: dict[str, Any], config: PretrainedConfig) -> Keys:
    kind = settings.get("rope_type", "default")
    if kind in ("default", "llama3"):  # llama3 is a table of factors, see `rope_tables`
        return {}
    original = settings.get("original_max_position_embeddings") or config.max_position_embeddings
    if kind == "longrope":
        return {
            "rope.scaling.original_context_length": int(original),
            "rope.scaling.attn_factor": _long_factor(settings, config, int(original)),
        }
    if kind not in ("linear", "yarn"):
        raise CheckpointError(
            f"rotary scaling of the kind '{kind}' is not written to GGUF (default, linear, yarn, longrope and llama3 are): "
            "take the onnx engine"
        )
    keys: Keys = {"rope.scaling.type": kind, "rope.scaling.factor": float(settings["factor"])}
    if kind == "yarn":
        changed = [
            key for key in ("attention_factor", "mscale", "mscale_all_dim") if settings.get(key) is not None
        ]
        if changed or not settings.get("truncate", True):
            raise CheckpointError(
                f"yarn with {', '.join(changed) or 'truncate = false'} is not written to GGUF: take the onnx engine"
            )
        keys["rope.scaling.original_context_length"] = int(original)
        keys["rope.scaling.yarn_beta_fast"] = float(settings.get("beta_fast") or 32.0)
        keys["rope.scaling.yarn_beta_slow"] = float(settings.get("beta_slow") or 1.0)
    return keys


def _long_factor(settings: dict[str, Any], config: PretrainedConfig, original: int) -> float:
    """What longrope multiplies rotated queries and keys by (transformers' `modeling_rope_utils`)."""
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])
    factor = settings.get("factor") or config.max_position_embeddings / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def rope_tables(config: PretrainedConfig) -> dict[str, Float32]:
    """Divisors of the rotary frequencies, (rotated / 2,) float32: name in the file → values; none for most scalings."""
    settings = rope(config)
    kind = settings.get("rope_type")
    if kind == "longrope":
        named = {_LONG: settings["long_factor"], _SHORT: settings["short_factor"]}
        return {name: np.array(values, np.float32) for name, values in named.items()}
    return {ROPE_FACTORS: _llama3_factors(settings, config)} if kind == "llama3" else {}


def _llama3_factors(settings: dict[str, Any], config: PretrainedConfig) -> Float32:
    size = head_size(config)
    base = _rope_base(config)
    factor, low, high = (float(settings[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(settings["original_max_position_embeddings"])
    frequencies = 1.0 / base ** (np.arange(0, size, 2, dtype=np.float64) / size)
    wavelengths = 2 * math.pi / frequencies
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    factors: Float32 = (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
    return factors
