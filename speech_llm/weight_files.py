"""Tensors in the safetensors files of a folder, read one at a time or by rows, and copied without being loaded.

`safe_open` maps whole files, whose pages count as this process's memory until they are closed, and writes a file only of
tensors that are all in memory. What is larger than memory is read here with plain reads, and copied as bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunella.device_runtime.base.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # of one file, as transformers writes them
_LONGEST_HEADER = 100_000_000  # safetensors' own
_AT_ONCE = 8 << 20  # bytes
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `size` bytes from `offset` on."""

    path: Path
    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightFiles(Mapping[str, StoredTensor]):
    """By name, what the safetensors files in a folder hold. Nothing is kept open."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            CheckpointError: no such files, or a damaged one.
        """
        self.folder = folder
        self._found: dict[str, StoredTensor] = {}
        for path in weight_paths(folder):
            self._found.update(_read_header(path))
        if not self._found:
            raise CheckpointError(
                f"{folder} holds no weights in safetensors: save the model again with transformers"
            )

    def __getitem__(self, name: str) -> StoredTensor:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def read(self, name: str, into: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor in float32, whatever it is stored in; integers and bools as they are.

        Args:
            name: of the tensor.
            into: is filled instead of a new one, where it fits: fresh memory costs more than reading does.
        """
        stored = self[name]
        dtype = torch.float32 if stored.dtype.is_floating_point else stored.dtype
        fits = into is not None and into.shape == stored.shape and into.dtype == dtype
        whole = into if into is not None and fits else torch.empty(stored.shape, dtype=dtype)
        flat, place = whole.view(-1), 0
        with stored.path.open("rb") as file:
            file.seek(stored.offset)
            for part in _pieces(file, stored):
                some = torch.frombuffer(part, dtype=stored.dtype)
                flat[place : place + len(some)] = some
                place += len(some)
        return whole

    def rows(self, name: str, numbers: Sequence[int]) -> torch.Tensor:
        """Some rows of a matrix, (len(numbers), width) float32."""
        stored = self[name]
        found = torch.empty(len(numbers), stored.shape[1])
        buffer = bytearray(stored.shape[1] * stored.dtype.itemsize)
        with stored.path.open("rb") as file:
            for row, number in zip(found, numbers, strict=True):
                file.seek(stored.offset + number * len(buffer))
                _fill(memoryview(buffer), file, stored.path)
                row.copy_(torch.frombuffer(buffer, dtype=stored.dtype))
        return found


def weight_paths(folder: Path) -> list[Path]:
    """The safetensors files of a model: those that its index names, else those that are there."""
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / Path(name).name for name in sorted(names)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"cannot read {index} ({error}): download or copy it again") from error
    found = sorted(folder.glob("*.safetensors"))
    whole = [path for path in found if path.name.startswith("model")]
    return whole or found


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, StoredTensor | torch.Tensor]], limit: int = SHARD_BYTES
) -> None:
    """Write `model.safetensors`, or shards of at most `limit` bytes and their index, as transformers names them.

    Args:
        folder: it exists.
        tensors: what is stored somewhere is copied, byte by byte; what is in memory is written as it is.
        limit: bytes of a shard; one tensor may be larger.
    """
    shards: list[list[tuple[str, StoredTensor | torch.Tensor]]] = [[]]
    filled = 0
    for name, tensor in tensors:
        size = _size(tensor)
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append((name, tensor))
        filled += size
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(path, shard)
        places |= dict.fromkeys((name for name, _ in shard), path.name)
    total = sum(_size(tensor) for shard in shards for _, tensor in shard)
    body = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, tensors: Sequence[tuple[str, StoredTensor | torch.Tensor]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors:
        size = _size(tensor)
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned, as the format asks
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in tensors:
            if isinstance(tensor, StoredTensor):
                with tensor.path.open("rb") as file:
                    file.seek(tensor.offset)
                    for part in _pieces(file, tensor):
                        out.write(part)
            else:
                out.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def _read_header(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
        end = path.stat().st_size
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            dtype, shape = _DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
            if (
                last - first != math.prod(shape) * dtype.itemsize
                or not 0 <= first <= last <= end - 8 - length
            ):
                raise ValueError(f"{name} does not lie in it")
            yield name, StoredTensor(path, 8 + length + first, last - first, dtype, shape)
    except (OSError, ValueError, struct.error, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path.name} is cut short or damaged ({error}): download or copy it again"
        ) from error


def _pieces(file: Any, stored: StoredTensor) -> Iterator[memoryview]:
    """A tensor's bytes from where the file stands; each piece is of use until the next."""
    buffer = bytearray(min(stored.size, _AT_ONCE))
    for start in range(0, stored.size, _AT_ONCE):
        part = memoryview(buffer)[: min(_AT_ONCE, stored.size - start)]
        _fill(part, file, stored.path)
        yield part


def _fill(part: memoryview, file: Any, path: Path) -> None:
    place = 0
    while place < len(part):
        got = file.readinto(part[place:])
        if not got:
            raise CheckpointError(f"{path.name} is cut short: download or copy it again")
        place += got


def _size(tensor: StoredTensor | torch.Tensor) -> int:
    return tensor.size if isinstance(tensor, StoredTensor) else tensor.numel() * tensor.element_size()
