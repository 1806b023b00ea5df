"""The decoder's token embeddings as `embed_tokens.onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx import TensorProto, helper, numpy_helper

from prunella.quantize.graph_file import save_graph
from prunella.speech_llm.model import SpeechLLM

EMBED_TOKENS_NAME = "embed_tokens.onnx"


def export_embed_tokens(model: SpeechLLM, out: Path) -> Path:
    """Write `embed_tokens.onnx`: `input_ids` (1, n) int64 → `inputs_embeds` (1, n, hidden) float32.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: the embedding layer is of a kind that may do more than look up.
    """
    view = model.view
    scale = view.lookup_scale  # goes into the table
    weight: Any = view.embeddings.weight
    table = weight.detach().float().cpu().numpy()
    graph = helper.make_graph(
        [
            helper.make_node(
                "Gather", ["embed_tokens.weight", "input_ids"], ["inputs_embeds"], "embed_tokens/Gather"
            )
        ],
        "embed_tokens",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "sequence_length"])],
        [
            helper.make_tensor_value_info(
                "inputs_embeds", TensorProto.FLOAT, [1, "sequence_length", table.shape[1]]
            )
        ],
        [numpy_helper.from_array(table * scale if scale != 1.0 else table, "embed_tokens.weight")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return save_graph(proto, out / EMBED_TOKENS_NAME)
