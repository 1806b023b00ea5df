"""The decoder families that llama.cpp runs, and what it takes for granted about each: checked before anything is written.

Read in llama.cpp's `src/models/*.cpp`, as llama-cpp-python 0.3.36 has it. A model that differs from what llama.cpp
hard-codes would load and be silently wrong, so it is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gguf
from transformers import PretrainedConfig

from prunella.device_runtime.base.errors import CheckpointError
from prunella.export.gguf_keys import (
    Keys,
    cohere2_keys,
    experts_keys,
    gemma2_keys,
    gemma3_keys,
    granite_keys,
    head_size,
    rope,
    slides,
)

_NOPE_STEP = 4  # llama.cpp: SmolLM3's every fourth layer has no rotary embedding, whatever the file says
_SILU, _GELU = ("silu", "swish"), ("gelu_pytorch_tanh",)  # the latter is what ggml calls GELU
_ONNX = "take the onnx engine"


def _nothing(config: PretrainedConfig) -> None:
    """Nothing more is taken for granted."""


@dataclass(frozen=True)
class Family:
    """One architecture of llama.cpp.

    Attributes:
        arch: in gguf's numbering; its name is `general.architecture`.
        permuted: whether rows of q and k are stored as rotary pairs of neighbours.
        free_head_size: whether heads may be wider than hidden size / heads.
        biases: projections that may have a bias there (others would be dropped when loading).
        qk_norm: whether queries and keys are normalised.
        activation: of the MLP, by transformers' names.
        partial_rotary: whether a part of each head may be rotated.
        windows: whether the file says which layers slide.
        norm_shift: what is added to the weights of norms (Gemma's are stored around 0, llama.cpp multiplies by them).
        tied: whether the embeddings must be the head.
        keys: further keys of its own.
        check: raises CheckpointError where a model is not what llama.cpp computes.
    """

    arch: gguf.MODEL_ARCH
    permuted: bool
    free_head_size: bool
    biases: tuple[str, ...]
    qk_norm: bool = False
    activation: tuple[str, ...] = _SILU
    partial_rotary: bool = False
    windows: bool = False
    norm_shift: float = 0.0
    tied: bool = False
    keys: Callable[[PretrainedConfig], Keys] = field(default=lambda config: {})
    check: Callable[[PretrainedConfig], None] = _nothing


def _check_nope(config: Any) -> None:
    expected = [int((layer + 1) % _NOPE_STEP != 0) for layer in range(config.num_hidden_layers)]
    found = [int(uses) for uses in config.no_rope_layers or []][: config.num_hidden_layers]
    if found != expected:
        first = next(
            (i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), len(found)
        )
        raise CheckpointError(
            f"layer {first} breaks SmolLM3's pattern (every fourth layer without rotary embedding), which llama.cpp "
            f"derives from the layer's number: cut blocks of 4, 8 ... layers, or {_ONNX}"
        )


def _check_scale(config: Any, layers_of_27b: int) -> None:
    """llama.cpp knows Gemma's 27B, whose attention is scaled otherwise, by its number of layers, and no other such model."""
    is_27b = config.num_hidden_layers == layers_of_27b
    theirs = config.hidden_size // config.num_attention_heads if is_27b else head_size(config)
    if config.query_pre_attn_scalar != theirs:
        raise CheckpointError(
            f"llama.cpp scales the attention of a {config.model_type} of {config.num_hidden_layers} layers by the root of "
            f"1/{theirs}, the model by that of 1/{config.query_pre_attn_scalar}: {_ONNX}"
        )


def _check_gemma2(config: Any) -> None:
    _check_scale(config, 46)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not getattr(config, name):
            raise CheckpointError(
                f"llama.cpp always caps a Gemma 2's logits, the model has no {name}: {_ONNX}"
            )


def _check_gemma3(config: Any) -> None:
    _check_scale(config, 62)
    if config.attn_logit_softcapping or getattr(config, "use_bidirectional_attention", False):
        raise CheckpointError(
            f"llama.cpp runs Gemma 3 without a cap in its attention and from left to right, the model is another: {_ONNX}"
        )
    local = rope(config, "sliding_attention")
    if local.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"llama.cpp does not stretch the rotations of Gemma 3's sliding layers ({local['rope_type']}): {_ONNX}"
        )


def _check_experts(config: Any) -> None:
    dense = [
        layer
        for layer in range(config.num_hidden_layers)
        if layer in (config.mlp_only_layers or ()) or (layer + 1) % config.decoder_sparse_step
    ]
    if dense or not config.norm_topk_prob:
        what = (
            f"layer {dense[0]} is a plain MLP" if dense else "the weights of its experts do not add up to one"
        )
        raise CheckpointError(
            f"llama.cpp has experts in every layer of a {config.model_type}, their weights made one together; in this "
            f"model {what}, and the ONNX builder does not have the family: take PyTorch"
        )


_QKV = ("q_proj", "k_proj", "v_proj")
_ALL_BIASES = (*_QKV, "o_proj", "gate_proj", "up_proj", "down_proj")
_LLAMA = gguf.MODEL_ARCH.LLAMA

# By Hugging Face's `model_type`.
FAMILIES: dict[str, Family] = {
    "llama": Family(_LLAMA, True, True, _ALL_BIASES),
    "mistral": Family(_LLAMA, True, True, ()),
    "ministral": Family(_LLAMA, True, True, ()),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2, False, False, _QKV),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3, False, True, _QKV, qk_norm=True),
    "qwen3_moe": Family(
        gguf.MODEL_ARCH.QWEN3MOE, False, True, _QKV, qk_norm=True, keys=experts_keys, check=_check_experts
    ),
    "smollm3": Family(gguf.MODEL_ARCH.SMOLLM3, True, True, _QKV, check=_check_nope),
    "granite": Family(gguf.MODEL_ARCH.GRANITE, True, True, _ALL_BIASES, keys=granite_keys),
    "phi3": Family(gguf.MODEL_ARCH.PHI3, False, False, (), partial_rotary=True),
    "olmo2": Family(gguf.MODEL_ARCH.OLMO2, False, False, (), qk_norm=True),
    "cohere2": Family(gguf.MODEL_ARCH.COHERE2, False, False, (), windows=True, tied=True, keys=cohere2_keys),
    "gemma": Family(gguf.MODEL_ARCH.GEMMA, False, True, (), activation=_GELU, norm_shift=1.0, tied=True),
    "gemma2": Family(
        gguf.MODEL_ARCH.GEMMA2,
        False,
        True,
        (),
        activation=_GELU,
        windows=True,
        norm_shift=1.0,
        tied=True,
        keys=gemma2_keys,
        check=_check_gemma2,
    ),
    "gemma3_text": Family(
        gguf.MODEL_ARCH.GEMMA3,
        False,
        True,
        (),
        qk_norm=True,
        activation=_GELU,
        windows=True,
        norm_shift=1.0,
        keys=gemma3_keys,
        check=_check_gemma3,
    ),
}
# What llama.cpp runs and prunella does not write.
_REFUSED = {
    "lfm2": "its convolutions keep a state that cannot be wound back, as beams, drafts and letters need it",
}


def find_family(config: PretrainedConfig, max_context: int) -> Family:
    """The family of a decoder's configuration, checked against what llama.cpp assumes of it.

    Raises:
        CheckpointError: llama.cpp does not run the family here, or would run this model wrongly.
    """
    kind = config.model_type
    family = FAMILIES.get(kind)
    if family is None:
        why = f" ({_REFUSED[kind]})" if kind in _REFUSED else ""
        raise CheckpointError(
            f"decoders of the kind '{kind}' are not written to GGUF{why}: "
            f"there are {', '.join(FAMILIES)}; a target with the onnx engine may take it"
        )
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in (None, *family.activation):
        raise CheckpointError(
            f"llama.cpp runs this family with {family.activation[0]}, the model has {activation}: {_ONNX}"
        )
    if not family.free_head_size and head_size(config) * config.num_attention_heads != config.hidden_size:
        raise CheckpointError(
            f"llama.cpp's {kind} has heads of hidden size / heads, the model's are {head_size(config)}: {_ONNX}"
        )
    if float(rope(config).get("partial_rotary_factor") or 1.0) != 1.0 and not family.partial_rotary:
        raise CheckpointError(f"llama.cpp rotates whole heads here, the model part of them: {_ONNX}")
    if family.tied and not config.tie_word_embeddings:
        raise CheckpointError(
            f"llama.cpp's {kind} has its embeddings for the head, the model one of its own: {_ONNX}"
        )
    if family.arch == gguf.MODEL_ARCH.OLMO2 and config.tie_word_embeddings:
        raise CheckpointError(f"llama.cpp's {kind} has a head of its own, the model its embeddings: {_ONNX}")
    window = getattr(config, "sliding_window", None)
    if window and window < max_context and any(slides(config)) and not family.windows:
        raise CheckpointError(
            f"the model's attention slides over {window} positions, llama.cpp's does not: "
            f"set the target's max_context to {window} or less"
        )
    if rope(config).get("rope_type") == "longrope":
        original = rope(config).get("original_max_position_embeddings") or config.max_position_embeddings
        if original < max_context:
            raise CheckpointError(
                f"the model rotates otherwise from the position {original} on, which llama.cpp decides by the room and "
                f"not by the text: set the target's max_context to {original} or less"
            )
    family.check(config)
    return family
