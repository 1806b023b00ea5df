"""Passes from one ONNX graph to another: choose matrix products, store their weights another way."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunella.quantize.blockwise import quantize_blocks
from prunella.quantize.recipes import WeightFormat

HEAD = "/lm_head/MatMul"
ATTENTION = "/attn/"  # part of the names of its projections
DOWN_PROJECTION = "/mlp/down_proj/MatMul"
HALF = "_float16"  # behind the name of a constant that is stored so
_FEWEST_HALVES = 4_096  # numbers that a node more is worth
_LARGEST_INT8 = 127
# Kernels for AVX2 and for AVX-512 without VNNI add pairs of products in 16 bits: 2 * 255 * 63 still fits.
_LARGEST_PRODUCT_FACTOR = 63


def quantize_matmuls(
    model: onnx.ModelProto, format_: WeightFormat, chosen: Callable[[onnx.NodeProto], bool]
) -> int:
    """Store the constant weights of the chosen MatMul nodes in `format_`, in place.

    Returns:
        The number of nodes that were changed.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    names = {
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants and chosen(node)
    }
    if format_.method == "float" or not names:
        return 0
    if format_.method == "blockwise":
        _blockwise(model, format_, names)
    else:
        _channelwise(model, names)
    return len(names)


def quantize_embeddings(model: onnx.ModelProto, format_: WeightFormat) -> None:
    """Store the table of the graph's one Gather as int8 with a float32 scale per row (token), in place."""
    if format_.method == "float":
        return
    (gather,) = [node for node in model.graph.node if node.op_type == "Gather"]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == gather.input[0])
    table = numpy_helper.to_array(tensor)
    scale = _symmetric_scale(table, axis=1, largest=_LARGEST_INT8)
    rows = np.rint(table / scale).astype(np.int8)
    ids, output, name = gather.input[1], gather.output[0], tensor.name
    nodes = [
        helper.make_node("Gather", [f"{name}_int8", ids], ["rows_int8"], "embed_tokens/Gather"),
        helper.make_node("Cast", ["rows_int8"], ["rows"], "embed_tokens/Cast", to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scale", ids], ["scales"], "embed_tokens/Gather_scale"),
        helper.make_node("Mul", ["rows", "scales"], [output], "embed_tokens/Mul"),
    ]
    _replace(model, {gather.name: nodes})
    model.graph.initializer.extend(
        [numpy_helper.from_array(rows, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]
    )
    _drop_unused(model)


def store_half(model: onnx.ModelProto) -> None:
    """Store the graph's larger float32 constants as float16, in place; ONNX Runtime makes them float32 as it loads them."""
    for tensor in [*model.graph.initializer]:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < _FEWEST_HALVES:
            continue
        users = [node for node in model.graph.node if tensor.name in node.input]
        values = numpy_helper.to_array(tensor)
        model.graph.initializer.remove(tensor)
        if all(node.op_type == "Slice" for node in users):
            # Rows of a table of positions: it stays in the mapped file, and what is cut out of it becomes float32.
            model.graph.initializer.append(
                numpy_helper.from_array(values.astype(np.float16), tensor.name + HALF)
            )
            for node in users:
                node.input[0], cut = tensor.name + HALF, node.output[0]
                node.output[0] = cut + HALF
                cast = helper.make_node("Cast", [cut + HALF], [cut], f"{cut}/Cast", to=TensorProto.FLOAT)
                model.graph.node.insert([*model.graph.node].index(node) + 1, cast)
        else:
            _add_half(model, tensor.name, values)


def _add_half(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    """A float32 constant of this name, kept as float16."""
    stored = f"{name}{HALF}"
    model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), stored))
    model.graph.node.insert(
        0, helper.make_node("Cast", [stored], [name], f"{name}/Cast", to=TensorProto.FLOAT)
    )


def _blockwise(model: onnx.ModelProto, format_: WeightFormat, names: set[str]) -> None:
    """MatMul → com.microsoft MatMulNBits, symmetric: a zero point decodes wrongly on AVX2 (onnxruntime #29853)."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    replaced: dict[str, list[onnx.NodeProto]] = {}
    done: set[str] = set()
    for node in model.graph.node:
        if node.name not in names:
            continue
        name = node.input[1]
        integers, scales = f"{name}_Q{format_.bits}", f"{name}_scales"
        if name not in done:
            done.add(name)
            packed, steps = quantize_blocks(
                numpy_helper.to_array(weights[name]), format_.bits, format_.block_size
            )
            model.graph.initializer.append(numpy_helper.from_array(packed, integers))
            _add_half(model, scales, steps)
        replaced[node.name] = [
            helper.make_node(
                "MatMulNBits",
                [node.input[0], integers, scales],
                list(node.output),
                node.name,
                domain="com.microsoft",
                K=weights[name].dims[0],
                N=weights[name].dims[1],
                bits=format_.bits,
                block_size=format_.block_size,
                accuracy_level=format_.accuracy_level,
            )
        ]
    _replace(model, replaced)
    _drop_unused(model)
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _channelwise(model: onnx.ModelProto, names: set[str]) -> None:
    """MatMul → DynamicQuantizeLinear, MatMulInteger, Cast, Mul; onnxruntime runs the four as one kernel."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    replaced: dict[str, list[onnx.NodeProto]] = {}
    stored: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        if node.name not in names:
            continue
        name = node.input[1]
        if name not in stored:
            matrix = numpy_helper.to_array(weights[name])
            scale = _symmetric_scale(matrix, axis=0, largest=_LARGEST_PRODUCT_FACTOR)[0]
            stored[name] = (f"{name}_int8", f"{name}_scale")
            model.graph.initializer.extend(
                [
                    numpy_helper.from_array(np.rint(matrix / scale).astype(np.int8), f"{name}_int8"),
                    numpy_helper.from_array(scale, f"{name}_scale"),
                ]
            )
        integers, scales = stored[name]
        p = node.name
        replaced[p] = [
            helper.make_node(
                "DynamicQuantizeLinear",
                [node.input[0]],
                [f"{p}/x", f"{p}/x_scale", f"{p}/x_zero"],
                f"{p}/quantize",
            ),
            helper.make_node("MatMulInteger", [f"{p}/x", integers, f"{p}/x_zero"], [f"{p}/sums"], p),
            helper.make_node("Cast", [f"{p}/sums"], [f"{p}/floats"], f"{p}/cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{p}/x_scale", scales], [f"{p}/scale"], f"{p}/scales"),
            helper.make_node("Mul", [f"{p}/floats", f"{p}/scale"], list(node.output), f"{p}/scaled"),
        ]
    _replace(model, replaced)
    _drop_unused(model)


def _symmetric_scale(matrix: np.ndarray, axis: int, largest: int) -> np.ndarray:
    """Scale that maps the largest magnitude along `axis` to `largest`; 1 where all are zero."""
    magnitude = np.abs(matrix).max(axis=axis, keepdims=True).astype(np.float32)
    return np.where(magnitude > 0, magnitude / largest, np.float32(1)).astype(np.float32)


def _replace(model: onnx.ModelProto, replaced: dict[str, list[onnx.NodeProto]]) -> None:
    nodes = [new for node in model.graph.node for new in replaced.get(node.name, [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
