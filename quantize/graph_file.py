"""Graph files: one `.onnx`, or an `.onnx` with its weights beside it (`.onnx_data`)."""

from __future__ import annotations

from pathlib import Path

import onnx

# Protobuf ends at 2 GiB; the margin is for the graph itself.
_LARGEST_FILE = 1_900_000_000


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
