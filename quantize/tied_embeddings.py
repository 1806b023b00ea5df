"""Token embeddings that are looked up in the head's own integers: one stored matrix serves both graphs.

`embed_tokens.onnx` names a range of the decoder's weight file. Both map it into memory, so that it is there once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunella.quantize.onnx_passes import HALF, HEAD

LOOKUP = "embed_tokens/Gather"
FACTOR = "embed_tokens/factor"
_SAME = 1e-6


def tied_factor(decoder: onnx.ModelProto, embeddings: onnx.ModelProto) -> float | None:
    """What the head's rows are multiplied by to be the embeddings, of two float graphs; None where they are not tied."""
    weights = {tensor.name: tensor for tensor in decoder.graph.initializer}
    head = next((node for node in decoder.graph.node if node.name == HEAD and node.op_type == "MatMul"), None)
    if head is None or head.input[1] not in weights:
        return None
    rows: npt.NDArray[np.float32] = numpy_helper.to_array(weights[head.input[1]]).T
    table: npt.NDArray[np.float32] = numpy_helper.to_array(embeddings.graph.initializer[0])
    if rows.shape != table.shape:
        return None
    largest = np.unravel_index(np.abs(rows).argmax(), rows.shape)
    factor = table[largest] / rows[largest] if rows[largest] else np.float32(1)
    if not np.isfinite(factor) or not np.allclose(rows * factor, table, rtol=_SAME, atol=0):
        return None
    return float(factor)


def look_up_in_head(
    decoder: onnx.ModelProto, embeddings: onnx.ModelProto, factor: float
) -> onnx.ModelProto | None:
    """`embed_tokens.onnx` over the quantised head of a saved decoder: `input_ids` (1, n) int64 → (1, n, hidden) float32.

    Args:
        decoder: the quantised graph, after `save_graph` has put its weights into a file.
        embeddings: the float graph that this one stands for.
        factor: of `tied_factor`.

    Returns:
        The graph, whose weights are where the decoder's are; None where the head is not in blocks.
    """
    head = next(node for node in decoder.graph.node if node.name == HEAD)
    if head.op_type != "MatMulNBits":
        return None
    facts = {entry.name: entry.i for entry in head.attribute}
    weights = {tensor.name: tensor for tensor in decoder.graph.initializer}
    blocks = -(-facts["K"] // facts["block_size"])
    integers, scales = onnx.TensorProto(), onnx.TensorProto()
    integers.CopyFrom(weights[head.input[1]])
    scales.CopyFrom(weights[f"{head.input[2]}{HALF}"])
    integers.dims[:] = [facts["N"], blocks * facts["block_size"] * facts["bits"] // 8]
    nodes = [
        helper.make_node(
            "GatherBlockQuantized",
            [integers.name, "input_ids", scales.name],
            ["rows"],
            LOOKUP,
            domain="com.microsoft",
            bits=facts["bits"],
            block_size=facts["block_size"],
            gather_axis=0,
            quantize_axis=1,
        ),
        helper.make_node("Cast", ["rows"], ["floats"], "embed_tokens/Cast", to=TensorProto.FLOAT),
    ]
    constants = [integers, scales]
    last = "floats"
    if factor != 1:
        constants.append(helper.make_tensor(FACTOR, TensorProto.FLOAT, [], [factor]))
        nodes.append(helper.make_node("Mul", [last, FACTOR], ["scaled"], "embed_tokens/Mul"))
        last = "scaled"
    if facts["K"] % facts["block_size"]:  # the last block was filled up
        for name, value in (("start", 0), ("end", facts["K"]), ("axis", 2)):
            constants.append(helper.make_tensor(f"embed_tokens/{name}", TensorProto.INT64, [1], [value]))
        nodes.append(
            helper.make_node(
                "Slice",
                [last, "embed_tokens/start", "embed_tokens/end", "embed_tokens/axis"],
                ["cut"],
                "embed_tokens/Slice",
            )
        )
    nodes[-1].output[0] = "inputs_embeds"
    graph = helper.make_graph(
        nodes, "embed_tokens", embeddings.graph.input, embeddings.graph.output, constants
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
