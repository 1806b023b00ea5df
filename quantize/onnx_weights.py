"""Whether a quantised graph holds the matrices of the float one: its integers are read back and compared, one by one.

Logits cannot tell: rounding `reference` to 4 bits moves them by 0.46 standard deviations, and a layer that has lost its
feed-forward part besides by 0.47.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from prunella.device_runtime.base.errors import ExportError
from prunella.quantize.graph_file import read_weights
from prunella.quantize.onnx_graphs import GRAPHS
from prunella.quantize.onnx_passes import HALF
from prunella.quantize.tied_embeddings import FACTOR

Array = npt.NDArray[Any]
_FEWEST_STEPS = 63  # of what is not in blocks, from zero to the largest


def check_weights(source: Path, folder: Path) -> None:
    """Compare the graphs in `folder` with those in `source` that they were made of; one matrix at a time is in memory.

    Raises:
        ExportError: a matrix is missing, or further from its own than rounding can take it.
    """
    for name in GRAPHS:
        if not (folder / name).is_file():
            continue
        floats, stored = _Graph(source / name), _Graph(folder / name)
        for constant in floats.constants.keys() & stored.known():
            values, found = floats.array(constant), stored.array(constant)
            if constant not in stored.constants:
                values = values.astype(np.float16)
            if not np.array_equal(values, found, equal_nan=True):
                raise _wrong(name, constant, "is not that of the float graph")
        for node in floats.with_matrix():
            _check_node(floats, stored, node)


class _Graph:
    def __init__(self, path: Path) -> None:
        self.path = path
        graph = onnx.load(str(path), load_external_data=False).graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = {node.name: node for node in graph.node}

    def known(self) -> set[str]:
        """Names of constants, also of those that are stored as float16."""
        return {name.removesuffix(HALF) for name in self.constants} | self.constants.keys()

    def array(self, name: str) -> Array:
        """A constant as it is stored."""
        stored = name if name in self.constants else f"{name}{HALF}"
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self.constants[stored])  # what is read into it is forgotten with it
        return numpy_helper.to_array(read_weights(tensor, self.path.parent))

    def with_matrix(self) -> list[str]:
        """Names of the nodes that `onnx_passes` may store otherwise."""
        return [name for name, node in self.nodes.items() if self.matrix(node) is not None]

    def matrix(self, node: onnx.NodeProto) -> str | None:
        place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        name = None if place is None else node.input[place]
        return name if name in self.constants and len(self.constants[name].dims) == 2 else None


def _check_node(floats: _Graph, stored: _Graph, name: str) -> None:
    node = stored.nodes.get(name)
    matrix = floats.matrix(floats.nodes[name])
    if node is not None and list(node.input) == list(floats.nodes[name].input) and matrix in stored.known():
        return  # as it was
    if matrix is None:
        raise _wrong(stored.path.name, name, "is missing")
    expected = floats.array(matrix)
    found = None if node is None else _read_back(stored, node, expected)
    if found is None:
        raise _wrong(stored.path.name, name, "is missing")
    values, bound = found
    if values.shape != expected.shape:
        raise _wrong(stored.path.name, name, f"has the shape {values.shape} instead of {expected.shape}")
    error = float(np.linalg.norm(values - expected)) / max(float(np.linalg.norm(expected)), 1e-30)
    if not error <= bound:  # also when it is NaN
        raise _wrong(
            stored.path.name, name, f"is {error:.2g} of its size away, where rounding takes it {bound:.2g}"
        )


def _read_back(graph: _Graph, node: onnx.NodeProto, expected: Array) -> tuple[Array, float] | None:
    """The matrix of `expected`'s shape that integers and scales stand for, and the most that rounding can change it, as a share of its size.

    A group of n numbers with one scale and s steps to its largest is at most sqrt(n) / 2s of its size away.
    """
    try:
        if node.op_type == "MatMulNBits":
            facts = {entry.name: entry.i for entry in node.attribute}
            values = _blocks(graph.array(node.input[1]), graph.array(node.input[2]), facts)
            return values, float(facts["block_size"] ** 0.5 / 2 ** facts["bits"])
        if node.op_type == "MatMulInteger":
            integers = graph.array(node.input[1])
            scales = graph.array(graph.nodes[f"{node.name}/scales"].input[1])
            return integers.astype(np.float32) * scales, integers.shape[0] ** 0.5 / (2 * _FEWEST_STEPS)
        if node.op_type == "GatherBlockQuantized":
            facts = {entry.name: entry.i for entry in node.attribute}
            facts |= {"N": expected.shape[0], "K": expected.shape[1]}
            factor = graph.array(FACTOR) if FACTOR in graph.constants else np.float32(1)
            values = _blocks(graph.array(node.input[0]), graph.array(node.input[2]), facts).T
            return values * factor, float(facts["block_size"] ** 0.5 / 2 ** facts["bits"])
        if node.op_type == "Gather":
            integers = graph.array(node.input[0])
            scales = graph.array(graph.nodes[f"{node.name}_scale"].input[0])
            return integers.astype(np.float32) * scales, integers.shape[1] ** 0.5 / (2 * _FEWEST_STEPS)
    except (KeyError, ValueError):  # a part is not there, or of another size
        return None
    return None


def _blocks(packed: Array, scales: Array, facts: dict[str, int]) -> Array:
    """Inverse of `blockwise.quantize_blocks`: (inputs, outputs) float32."""
    if facts["bits"] == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1)
    rows = packed.reshape(facts["N"], -1, facts["block_size"]).astype(np.float32) - 2 ** (facts["bits"] - 1)
    steps = scales.astype(np.float32).reshape(facts["N"], -1, 1)
    return (rows * steps).reshape(facts["N"], -1)[:, : facts["K"]].T


def _wrong(graph: str, name: str, what: str) -> ExportError:
    return ExportError(
        f"in the quantised {graph}, {name} {what}: this is a fault of prunella, report the model"
    )
