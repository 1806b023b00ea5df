"""Rotary embeddings of an ONNX decoder: the tables that transformers itself computes, in place of the model builder's.

The builder knows the plain rotation of one kind of layers, and fails over all else or leaves it out: it is given a
configuration with the plain rotation, and what the model has is put into its graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from transformers import AutoModelForCausalLM, PretrainedConfig

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import CheckpointError

_COS, _SIN = 7, 8  # inputs of GroupQueryAttention
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
# Those that rotate otherwise in longer texts: in a graph, the first of them.
_BY_LENGTH = ("dynamic", "longrope")


def settings_by_kind(config: Any) -> dict[str, dict[str, Any]]:
    """Rotary settings of each kind of layers; under "" where there is one for all."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    by_kind = {kind: dict(found[kind]) for kind in (_GLOBAL, _LOCAL) if found.get(kind)}
    return by_kind or {"": found}


def check_rotary(config: Any, max_context: int) -> None:
    """Refuse what no table of `max_context` rows can say.

    Raises:
        CheckpointError: a rotation that changes with the text's length, within the context.
    """
    for settings in settings_by_kind(config).values():
        kind = settings.get("rope_type", "default")
        limit = settings.get("original_max_position_embeddings") or config.max_position_embeddings
        if kind in _BY_LENGTH and limit < max_context:
            raise CheckpointError(
                f"the model's rotary embeddings ('{kind}') change in texts beyond {limit} positions, which a graph cannot say: "
                f"set the target's max_context to {limit} or less"
            )


def has_plain_rotation(config: Any) -> bool:
    """Whether the builder's own tables serve."""
    by_kind = settings_by_kind(config)
    return set(by_kind) == {""} and by_kind[""].get("rope_type", "default") == "default"


def simplify_rotation(config: Any, max_context: int) -> None:
    """Make a configuration, as the builder has it in memory, one that it does not fail over.

    Args:
        config: that is changed.
        max_context: positions that will be used.
    """
    by_kind = settings_by_kind(config)
    plain = by_kind.get(_GLOBAL) or by_kind.get("") or by_kind[_LOCAL]
    kept = {
        name: plain[name] for name in ("rope_theta", "partial_rotary_factor") if plain.get(name) is not None
    }
    if plain.get("rope_type") in _BY_LENGTH:  # the builder goes by these two to tell Phi-3's long contexts
        config.max_position_embeddings = config.original_max_position_embeddings = max_context
    config.rope_parameters = {"rope_type": "default", **kept}
    config.rope_local_base_freq = by_kind.get(_LOCAL, plain).get("rope_theta", 10_000.0)  # Gemma 3's


def set_rotary_tables(model: onnx.ModelProto, config: PretrainedConfig, max_context: int) -> None:
    """Put the model's own tables into the builder's graph: of every kind of layers, as many as there are positions.

    Args:
        model: the decoder's graph, whose attention turns queries and keys.
        config: the decoder's own.
        max_context: positions that will be used.
    """
    graph = model.graph
    old: set[str] = set()
    kinds = getattr(config, "layer_types", None) or []
    tables = rotary_tables(config, max_context)
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    for layer, node in enumerate(attention):
        if len(node.input) <= _SIN or not node.input[_COS]:
            continue
        old |= {node.input[_COS], node.input[_SIN]}
        kind = "" if "" in tables else kinds[layer]
        node.input[_COS], node.input[_SIN] = _names(kind)
    kept = [tensor for tensor in graph.initializer if tensor.name not in old]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for kind, values in tables.items():
        for name, table in zip(_names(kind), values, strict=True):
            graph.initializer.append(numpy_helper.from_array(table, name))


def leave_unturned(graph: onnx.GraphProto, layers: list[int]) -> None:
    """Take the rotary embedding out of the attention of these layers (SmolLM3)."""
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    for layer in layers:
        node = attention[layer]
        node.input[_COS] = node.input[_SIN] = ""
        while not node.input[-1]:
            del node.input[-1]
        kept = [entry for entry in node.attribute if entry.name != "do_rotary"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("do_rotary", 0)])


def rotary_tables(config: PretrainedConfig, max_context: int) -> dict[str, tuple[Float32, Float32]]:
    """Kind of layers ("" for all) → cosines and sines, (max_context, rotated / 2) float32, factors of attention included."""
    with torch.device("meta"):  # the class of the embedding is asked for, no weights
        body: Any = AutoModelForCausalLM.from_config(config).base_model
    rotary = type(body.rotary_emb)(config=config)
    positions, any_values = torch.arange(max_context)[None], torch.zeros(1)
    tables = {}
    for kind in settings_by_kind(config):
        turned = rotary(any_values, positions, *([kind] if kind else []))
        cos, sin = (values[0, :, : values.shape[-1] // 2].float().numpy() for values in turned)
        tables[kind] = (np.ascontiguousarray(cos), np.ascontiguousarray(sin))
    return tables


def _names(kind: str) -> tuple[str, str]:
    behind = f"_{kind}" if kind else ""
    return f"cos_cache{behind}", f"sin_cache{behind}"
