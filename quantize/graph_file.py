"""Graph files: one `.onnx`, or an `.onnx` with its weights beside it (`.onnx_data`)."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from prunella.device_runtime.base.errors import BundleError

# Protobuf ends at 2 GiB; the margin is for the graph itself.
_LARGEST_FILE = 1_900_000_000


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
    """Write `path`, and `path` + "_data" when the weights do not fit into one file. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size < _LARGEST_FILE:
        onnx.save(model, str(path))
    else:
        onnx.save(
            model, str(path), save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024
        )
    return path
