"""Graph files: an `.onnx` with its weights beside it (`.onnx_data`), from where ONNX Runtime maps them into memory.

Weights inside the `.onnx` are copied as they are parsed, and processes that run the same bundle cannot share them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, set_external_data, uses_external_data

from prunella.device_runtime.base.errors import BundleError

_SMALLEST = 1_024  # bytes of a tensor that is worth a place in the file of weights
_ALIGNMENT = 64  # bytes: a cache line


def load_graph(path: Path) -> onnx.ModelProto:
    """A graph with its weights, also those beside it.

    Raises:
        BundleError: weights are missing, or cut short.
    """
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        read_weights(tensor, path.parent)
    return model


def read_weights(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """Put a tensor's weights that lie beside the graph into it. onnx itself refuses files with hard links, as backups have.

    Raises:
        BundleError: they are missing, or cut short.
    """
    if not uses_external_data(tensor):
        return tensor
    info = ExternalDataInfo(tensor)
    data = folder / info.location
    try:
        if Path(info.location).name != info.location:
            raise FileNotFoundError
        with data.open("rb") as file:
            file.seek(info.offset or 0)
            tensor.raw_data = file.read(info.length or -1)
    except FileNotFoundError as error:
        raise BundleError(f"{data} is missing: copy it again, or export it again") from error
    if info.length and len(tensor.raw_data) != info.length:
        raise BundleError(f"{data} is cut short: copy it again, or export it again")
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.DEFAULT
    return tensor


def save_graph(model: onnx.ModelProto, path: Path) -> Path:
    """Write `path`, and `path` + "_data" with the weights; in `model` they are then known by their place in that file.

    Tensors that are in a file of this folder already stay where they are.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _SMALLEST]
    if large:
        name = f"{path.name}_data"
        with (path.parent / name).open("wb") as file:
            for tensor in large:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                offset, length = file.tell(), file.write(tensor.raw_data)
                set_external_data(tensor, name, offset, length)
                tensor.ClearField("raw_data")
    onnx.save(model, str(path))
    return path
