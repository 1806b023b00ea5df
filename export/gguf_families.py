"""The decoder families that llama.cpp runs, and what it takes for granted about each: checked, then written as keys.

A model that differs from what llama.cpp hard-codes would load and be silently wrong, so it is refused here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from transformers import PretrainedConfig

from prunella.device_runtime.base.errors import CheckpointError

_NOPE_STEP = 4  # llama.cpp: SmolLM3's every fourth layer has no rotary embedding, whatever the file says
_HEAD_ROW_PAIRS = 2  # Hugging Face rotates (first half, second half), llama.cpp's Llama pairs of neighbours


@dataclass(frozen=True)
class Family:
    """One architecture of llama.cpp.

    Attributes:
        arch: in gguf's numbering; its name is `general.architecture`.
        permuted: whether rows of q and k are stored as rotary pairs of neighbours.
        free_head_size: whether heads may be wider than hidden size / heads.
        biases: projections that may have a bias there (others would be dropped when loading).
        qk_norm: whether queries and keys are normalised per head.
    """

    arch: gguf.MODEL_ARCH
    permuted: bool
    free_head_size: bool
    biases: tuple[str, ...]
    qk_norm: bool = False


_QKV = ("q_proj", "k_proj", "v_proj")
_ALL_BIASES = (*_QKV, "o_proj", "gate_proj", "up_proj", "down_proj")

# By Hugging Face's `model_type`.
FAMILIES: dict[str, Family] = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, True, True, _ALL_BIASES),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, True, True, ()),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2, False, False, _QKV),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3, False, True, _QKV, qk_norm=True),
    "smollm3": Family(gguf.MODEL_ARCH.SMOLLM3, True, True, _QKV),
}


def find_family(config: PretrainedConfig, max_context: int) -> Family:
    """The family of a decoder's configuration, checked against what llama.cpp assumes of it.

    Raises:
        CheckpointError: llama.cpp does not run the family here, or would run this model wrongly.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise CheckpointError(
            f"decoders of the kind '{config.model_type}' are not written to GGUF: "
            f"there are {', '.join(FAMILIES)}; a target with the onnx engine may take it"
        )
    if getattr(config, "hidden_act", "silu") != "silu":
        raise CheckpointError(
            f"llama.cpp runs this family with silu, the model has {config.hidden_act}: take the onnx engine"
        )
    if not family.free_head_size and head_size(config) * config.num_attention_heads != config.hidden_size:
        raise CheckpointError(
            f"llama.cpp's {config.model_type} has heads of hidden size / heads, the model's are {head_size(config)}: "
            "take the onnx engine"
        )
    if float(_rope(config).get("partial_rotary_factor", 1.0)) != 1.0:
        raise CheckpointError(
            "llama.cpp rotates whole heads here, the model part of them: take the onnx engine"
        )
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < max_context:
        raise CheckpointError(
            f"the model's attention slides over {window} positions, llama.cpp's does not: "
            f"set the target's max_context to {window} or less"
        )
    if config.model_type == "smollm3":
        _check_nope(config)
    return family


def _check_nope(config: PretrainedConfig) -> None:
    expected = [int((layer + 1) % _NOPE_STEP != 0) for layer in range(config.num_hidden_layers)]
    found = [int(uses) for uses in config.no_rope_layers or []][: config.num_hidden_layers]
    if found != expected:
        first = next(
            (i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), len(found)
        )
        raise CheckpointError(
            f"layer {first} breaks SmolLM3's pattern (every fourth layer without rotary embedding), which llama.cpp "
            "derives from the layer's number: cut blocks of 4, 8 ... layers, or take the onnx engine"
        )


def head_size(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _rope_base(config: PretrainedConfig) -> float:
    base: Any = _rope(config).get("rope_theta") or getattr(config, "rope_theta", None)
    return float(base or 10_000.0)


def hyper_parameters(config: PretrainedConfig, family: Family) -> dict[str, int | float | str]:
    """Keys of the model, without `general.*`: name → value; whole numbers are uint32, others float32."""
    name = gguf.MODEL_ARCH_NAMES[family.arch]
    size = head_size(config)
    keys: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": size,
    }
    rope = _rope(config)
    keys["rope.freq_base"] = _rope_base(config)
    keys |= _rope_scaling(rope, config)
    return {f"{name}.{key}": value for key, value in keys.items()}


def _rope_scaling(rope: dict[str, Any], config: PretrainedConfig) -> dict[str, int | float | str]:
    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):  # llama3 is a table of factors, see `rope_factors`
        return {}
    if kind not in ("linear", "yarn"):
        raise CheckpointError(
            f"rotary scaling of the kind '{kind}' is not written to GGUF (default, linear, yarn and llama3 are): "
            "take the onnx engine"
        )
    keys: dict[str, int | float | str] = {
        "rope.scaling.type": kind,
        "rope.scaling.factor": float(rope["factor"]),
    }
    if kind == "yarn":
        changed = [
            key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key) is not None
        ]
        if changed or not rope.get("truncate", True):
            raise CheckpointError(
                f"yarn with {', '.join(changed) or 'truncate = false'} is not written to GGUF: take the onnx engine"
            )
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        keys["rope.scaling.original_context_length"] = int(original)
        keys["rope.scaling.yarn_beta_fast"] = float(rope.get("beta_fast") or 32.0)
        keys["rope.scaling.yarn_beta_slow"] = float(rope.get("beta_slow") or 1.0)
    return keys


def rope_factors(config: PretrainedConfig) -> npt.NDArray[np.float32] | None:
    """Llama 3's divisors of the rotary frequencies, (head_size / 2,) float32; None for all other scalings."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    size = head_size(config)
    base = _rope_base(config)
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    context = float(rope["original_max_position_embeddings"])
    frequencies = 1.0 / base ** (np.arange(0, size, 2, dtype=np.float64) / size)
    wavelengths = 2 * math.pi / frequencies
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def permute_heads(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """(heads * size, ...) of a q or k projection, or its bias: halves of each head to pairs of neighbours."""
    size = rows.shape[0] // heads
    halves = rows.reshape(heads, _HEAD_ROW_PAIRS, size // _HEAD_ROW_PAIRS, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def unpermute_heads(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Inverse of `permute_heads`."""
    size = rows.shape[0] // heads
    pairs = rows.reshape(heads, size // _HEAD_ROW_PAIRS, _HEAD_ROW_PAIRS, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
