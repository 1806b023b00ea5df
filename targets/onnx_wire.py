"""As much of ONNX's file format as timing kernels and counting matrices take, without the library `onnx`, which no device has.

The format is Protocol Buffers: fields of (number, wire type) and a value. Numbers are those of `onnx.proto3`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

MICROSOFT = "com.microsoft"
_OPSET, _IR_VERSION = 20, 9
_FLOAT, _UINT8, _INT8, _INT32, _INT64 = 1, 2, 3, 6, 7  # TensorProto.DataType
_TYPES = {"float32": _FLOAT, "uint8": _UINT8, "int8": _INT8, "int32": _INT32, "int64": _INT64}
_VARINT, _BYTES = 0, 2
Value = int | float | str


@dataclass(frozen=True)
class Node:
    """One operator: what it reads, what it writes, its attributes."""

    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Value] = field(default_factory=dict)
    domain: str = ""


def write_graph(
    nodes: Iterable[Node],
    weights: Mapping[str, npt.NDArray[np.generic]],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
) -> bytes:
    """A model of one graph.

    Args:
        nodes: in an order in which each finds what it reads.
        weights: constants by name; float32, uint8, int8, int32 or int64.
        inputs: shapes by name, float32; a dimension of any size is a name.
        outputs: names; float32, of any shape.
    """
    graph = b"".join(_message(1, _node(node)) for node in nodes) + _text(2, "g")
    graph += b"".join(_message(5, _tensor(name, array)) for name, array in weights.items())
    graph += b"".join(_message(11, _value(name, shape)) for name, shape in inputs.items())
    graph += b"".join(_message(12, _value(name, None)) for name in outputs)
    opsets = _message(8, _text(1, "") + _number(2, _OPSET)) + _message(8, _text(1, MICROSOFT) + _number(2, 1))
    return _number(1, _IR_VERSION) + opsets + _message(7, graph)


@dataclass(frozen=True)
class ReadNode:
    """Of a file: the operator, its inputs and outputs, its whole-number attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int]


@dataclass(frozen=True)
class ReadGraph:
    """Of a file: its operators, and the shapes of its constants by name."""

    nodes: tuple[ReadNode, ...]
    shapes: Mapping[str, tuple[int, ...]]


def read_graph(path: Path) -> ReadGraph:
    """Operators and shapes of a model; the weights themselves are skipped.

    Raises:
        ValueError: no such file format.
    """
    nodes: list[ReadNode] = []
    shapes: dict[str, tuple[int, ...]] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for number, start, stop in _fields(data, 0, len(data)):
                if number != 7:
                    continue
                for inner, begin, end in _fields(data, start, stop):
                    if inner == 1:
                        nodes.append(_read_node(data, begin, end))
                    elif inner == 5:
                        name, shape = _read_tensor(data, begin, end)
                        shapes[name] = shape
        except (IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no ONNX file ({error})") from error
    return ReadGraph(tuple(nodes), shapes)


def _read_node(data: mmap.mmap, start: int, stop: int) -> ReadNode:
    op, inputs, outputs, attributes = "", [], [], {}
    for number, begin, end in _fields(data, start, stop):
        if number == 1:
            inputs.append(data[begin:end].decode())
        elif number == 2:
            outputs.append(data[begin:end].decode())
        elif number == 4:
            op = data[begin:end].decode()
        elif number == 5:
            name, value = "", 0
            for inner, low, high in _fields(data, begin, end):
                if inner == 1:
                    name = data[low:high].decode()
                elif inner == 3:
                    value = low  # a number stands where a text has its beginning
            attributes[name] = value
    return ReadNode(op, tuple(inputs), tuple(outputs), attributes)


def _read_tensor(data: mmap.mmap, start: int, stop: int) -> tuple[str, tuple[int, ...]]:
    name, dims = "", []
    for number, begin, end in _fields(data, start, stop):
        if number == 1:
            if end < 0:
                dims.append(begin)
            else:  # packed
                at = begin
                while at < end:
                    value, at = _varint(data, at)
                    dims.append(value)
        elif number == 8:
            name = data[begin:end].decode()
    return name, tuple(dims)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(field, begin, end) of texts and messages; (field, value, -1) of numbers."""
    at = start
    while at < stop:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value, -1
        elif wire == _BYTES:
            length, at = _varint(data, at)
            if at + length > stop:
                raise IndexError("it is cut short")
            yield number, at, at + length
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire}")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _number(number: int, value: int) -> bytes:
    return _encoded(number << 3) + _encoded(value)


def _message(number: int, body: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(body)) + body


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode())


def _encoded(value: int) -> bytes:
    found = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _node(node: Node) -> bytes:
    body = b"".join(_text(1, name) for name in node.inputs) + b"".join(
        _text(2, name) for name in node.outputs
    )
    return (
        body
        + _text(4, node.op)
        + b"".join(_message(5, _attribute(*one)) for one in node.attributes.items())
        + _text(7, node.domain)
    )


def _attribute(name: str, value: Value) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, 2)
    if isinstance(value, float):
        return _text(1, name) + _encoded(2 << 3 | 5) + struct.pack("<f", value) + _number(20, 1)
    return _text(1, name) + _text(4, value) + _number(20, 3)


def _tensor(name: str, array: npt.NDArray[np.generic]) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, _TYPES[array.dtype.name]) + _text(8, name) + _message(9, array.tobytes())


def _value(name: str, shape: Sequence[int | str] | None) -> bytes:
    dims = b"" if shape is None else _message(2, b"".join(_message(1, _dimension(size)) for size in shape))
    return _text(1, name) + _message(2, _message(1, _number(1, _FLOAT) + dims))


def _dimension(size: int | str) -> bytes:
    return _number(1, size) if isinstance(size, int) else _text(2, size)
