"""The decoder families that are exported to ONNX, checked before any work; what the model builder leaves out of one.

The builder fails late and with errors of its own, or says nothing: the gate would see that, after minutes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from transformers import PretrainedConfig

from prunella.device_runtime.base.errors import CheckpointError
from prunella.export.onnx_rotary import (
    check_rotary,
    has_plain_rotation,
    leave_unturned,
    set_rotary_tables,
    settings_by_kind,
    simplify_rotation,
)
from prunella.speech_llm.decoder_view import input_scale

# By Hugging Face's `model_type`: families of the model builder whose layers all keep keys and values.
FAMILIES = (
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "smollm3",
    "granite",
    "granitemoehybrid",
    "nemotron",
    "ernie4_5",
    "gpt_oss",
)
# What the builder takes and gets wrong, or fails over.
_REFUSED = {
    "olmo": "the model builder's graph says something else",
    "hunyuan_v1_dense": "the model builder's graph has no positions for its rotary embedding",
    "phimoe": "the model builder takes it with code of its own alone",
    "lfm2": "its convolutions keep a state of their own beside keys and values",
    "lfm2_moe": "its convolutions keep a state of their own beside keys and values",
}
# The builder's class for families that are another's, but for what is set below.
_BUILT_AS = {"ministral": "MistralForCausalLM"}
_ROTARY_STEP = 16  # ONNX Runtime's GroupQueryAttention on a processor


def check_onnx_decoder(config: PretrainedConfig, max_context: int = 2_048) -> None:
    """Refuse decoders that cannot be exported to ONNX, by their configuration alone.

    Args:
        config: of the decoder.
        max_context: positions that will be used.

    Raises:
        CheckpointError: names the family, why, and the families that there are.
    """
    text: Any = config.get_text_config()
    kind = config.model_type
    if kind not in FAMILIES:
        why = _REFUSED.get(kind, "the model builder has no such family")
        raise CheckpointError(
            f"decoders of the kind '{kind}' cannot be exported to ONNX ({why}): there are {', '.join(FAMILIES)}"
        )
    if kind == "granitemoehybrid" and "mamba" in (getattr(text, "layer_types", None) or ()):
        raise CheckpointError(
            "this granitemoehybrid has mamba layers, which keep a state of their own beside keys and values: "
            "take a Granite of attention layers alone"
        )
    if kind == "granitemoehybrid" and getattr(text, "position_embedding_type", None) != "rope":
        raise CheckpointError(
            "this granitemoehybrid has no rotary embedding, and the model builder writes one: take a Granite that has it"
        )
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if size % _ROTARY_STEP:
        raise CheckpointError(
            f"attention heads of {size} cannot run on ONNX Runtime's CPU: they must be a multiple of {_ROTARY_STEP} wide"
        )
    if kind != "gpt_oss":
        check_rotary(text, max_context)
    rope = next(iter(settings_by_kind(text).values()))
    share = rope.get("partial_rotary_factor") or getattr(text, "partial_rotary_factor", None) or 1.0
    if int(share * size) % _ROTARY_STEP:
        raise CheckpointError(
            f"rotary embeddings over {int(share * size)} of {size} numbers of a head cannot run on ONNX Runtime's CPU: "
            f"they must be a multiple of {_ROTARY_STEP} wide"
        )


def adapt_config(config: Any, max_context: int) -> None:
    """Change a configuration, as the builder has it in memory, where it would fail; `complete_graph` puts right what it says then."""
    kind = config.model_type
    config.architectures = [_BUILT_AS.get(kind, (config.architectures or [""])[0])]
    if kind == "smollm3":
        config.no_rope_layers = [1] * config.num_hidden_layers  # over a 0 it fails
    if kind != "gpt_oss" and not has_plain_rotation(config):
        simplify_rotation(config, max_context)


def complete_graph(model: onnx.ModelProto, decoder: PretrainedConfig, max_context: int) -> None:
    """Add to the builder's graph what it leaves out.

    Args:
        model: the decoder's graph, embeddings as input.
        decoder: its configuration, as in its folder.
        max_context: positions that will be used.
    """
    config = vars(decoder)
    if decoder.model_type != "gpt_oss" and not has_plain_rotation(decoder):
        set_rotary_tables(model, decoder, max_context)
    if decoder.model_type == "smollm3":
        leave_unturned(
            model.graph, [layer for layer, uses in enumerate(config["no_rope_layers"]) if not uses]
        )
    scale = input_scale(config)
    if scale != 1.0:
        _scale_inputs(model.graph, scale)
    epsilon = config.get("layer_norm_eps") or config.get("norm_eps")
    if epsilon:
        _set_epsilon(model.graph, float(epsilon))
    window = config.get("sliding_window")
    if window and not config.get("layer_types") and window < max_context:
        _slide_everywhere(model.graph, int(window))


def _set_epsilon(graph: onnx.GraphProto, epsilon: float) -> None:
    """The builder reads it of RMS norms alone, and writes 1e-6 for all other ones."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon" and "LayerNormalization" in node.op_type:
                attribute.f = epsilon


def _scale_inputs(graph: onnx.GraphProto, scale: float) -> None:
    """The builder has the factor in its own embedding node, which is not in the graph; it is for audio too."""
    scaled = "/model/scaled_embeds"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == "inputs_embeds":
                node.input[place] = scaled
    factor = numpy_helper.from_array(np.array(scale, np.float32), "/model/embedding_multiplier")
    graph.initializer.append(factor)
    graph.node.insert(
        0, helper.make_node("Mul", ["inputs_embeds", factor.name], [scaled], "/model/scale_embeds")
    )


def _slide_everywhere(graph: onnx.GraphProto, window: int) -> None:
    """The builder writes a window where the configuration lists the kinds of layers, not where it is all layers'."""
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            kept = [entry for entry in node.attribute if entry.name != "local_window_size"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("local_window_size", window)])
