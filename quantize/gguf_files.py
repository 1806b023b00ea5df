"""GGUF files, whole: keys and tensors in, a file out, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import BundleError

Value = str | bool | int | float | list[str] | list[int] | list[float]
FLOAT_TYPES = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
ARCHITECTURE = "general.architecture"
FILE_TYPE = "general.file_type"


def write_gguf(
    path: Path,
    keys: Mapping[str, Value],
    tensors: Mapping[str, Float32],
    storage: Callable[[str, tuple[int, ...]], GGMLQuantizationType],
) -> None:
    """Write a file.

    Args:
        path: of the file; its folder exists.
        keys: in order; whole numbers become uint32 (int32 in lists), others float32. `general.architecture` is among them.
        tensors: float32, in torch's order of dimensions. Converted one at a time.
        storage: name and shape → how the tensor is stored.
    """
    writer = gguf.GGUFWriter(path, str(keys[ARCHITECTURE]))
    try:
        for key, value in keys.items():
            if key != ARCHITECTURE:
                writer.add_key_value(key, value, *_value_types(value))
        kinds = {name: storage(name, tensor.shape) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            stored = gguf.quant_shape_to_byte_shape(tensor.shape, kinds[name])
            plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(
                kinds[name]
            )
            if plain is not None:
                writer.add_tensor_info(
                    name, tensor.shape, np.dtype(plain), tensor.size * np.dtype(plain).itemsize
                )
            else:
                size = int(np.prod(stored))
                writer.add_tensor_info(name, stored, np.dtype(np.uint8), size, raw_dtype=kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_tensor_data(gguf.quantize(np.ascontiguousarray(tensor), kinds[name]))
    finally:
        writer.close()


def _value_types(value: Value) -> tuple[GGUFValueType, GGUFValueType | None]:
    if isinstance(value, list):
        inner = GGUFValueType.INT32 if isinstance(value[0], int) else _scalar_type(value[0])
        return GGUFValueType.ARRAY, inner
    return _scalar_type(value), None


def _scalar_type(value: str | bool | int | float) -> GGUFValueType:
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if isinstance(value, str):
        return GGUFValueType.STRING
    return GGUFValueType.UINT32 if isinstance(value, int) else GGUFValueType.FLOAT32


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of an opened file; `shape` is in torch's order."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    bytes: int
    _data: npt.NDArray[Any]

    def values(self) -> Float32:
        """As float32, of the tensor's shape."""
        return gguf.dequantize(self._data, self.kind).astype(np.float32, copy=False).reshape(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """An opened file, its weights mapped into memory."""

    path: Path
    keys: dict[str, Any]  # without the reader's own "GGUF.*"
    tensors: dict[str, StoredTensor]

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors together."""
        weights = sum(int(np.prod(tensor.shape)) for tensor in self.tensors.values())
        return 8.0 * sum(tensor.bytes for tensor in self.tensors.values()) / max(1, weights)


def read_gguf(path: Path) -> GgufFile:
    """Open a file.

    Raises:
        BundleError: it is missing, cut short, or not GGUF.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise BundleError(f"{path} is not a readable GGUF file ({error}): export the bundle again") from error
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {
        tensor.name: StoredTensor(
            tensor.tensor_type,
            tuple(int(size) for size in reversed(tensor.shape.tolist())),
            int(tensor.n_bytes),
            tensor.data,
        )
        for tensor in reader.tensors
    }
    return GgufFile(path, keys, tensors)
