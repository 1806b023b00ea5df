"""An importance matrix on disk, in the layout of llama.cpp's own `llama-imatrix`, so that its tools read it too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from prunella.device_runtime.base.arrays import Float32
from prunella.quantize.gguf_files import ARCHITECTURE, Value, read_gguf, write_gguf

IMPORTANCE_NAME = "importance.gguf"
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Importance:
    """Name of a matrix in the decoder's file → (columns,) sum of squares of its inputs, over so many positions."""

    sums: dict[str, Float32]
    positions: int

    def means(self) -> dict[str, Float32]:
        """Mean squares, as quantisation takes them."""
        return {name: values / np.float32(max(1, self.positions)) for name, values in self.sums.items()}


def write_importance(importance: Importance, folder: Path) -> Path:
    """Write `importance.gguf` into `folder`."""
    keys: dict[str, Value] = {
        ARCHITECTURE: "imatrix",
        "general.type": "imatrix",
        "imatrix.datasets": ["calibration speech"],
        "imatrix.chunk_count": 1,
        "imatrix.chunk_size": importance.positions,
    }
    tensors: dict[str, Float32] = {}
    for name, values in importance.sums.items():
        tensors[name + _SUMS] = values[None]
        tensors[name + _COUNTS] = np.array([[importance.positions]], np.float32)
    write_gguf(folder / IMPORTANCE_NAME, keys, tensors, lambda *_: GGMLQuantizationType.F32)
    return folder / IMPORTANCE_NAME


def read_importance(path: Path) -> Importance:
    """Inverse of `write_importance`."""
    file = read_gguf(path)
    sums = {
        name.removesuffix(_SUMS): tensor.values().reshape(-1)
        for name, tensor in file.tensors.items()
        if name.endswith(_SUMS)
    }
    return Importance(sums, int(file.keys["imatrix.chunk_size"]))
