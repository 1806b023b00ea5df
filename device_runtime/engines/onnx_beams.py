"""Caches of several transcripts of one utterance on ONNX Runtime, in buffers that outlive the utterance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.heap import lazy_zeros
from prunella.device_runtime.decoding.limits import PAYING_BEAMS


class BeamCaches:
    """Keys and values of several transcripts; their first `shared` positions, prompt and audio, are the same.

    A transcript that goes on stays in its row, so that only those that part from another are copied.

    Args:
        layers: of the decoder.
        kv_heads: of each layer.
        head_dim: of each head.

    Attributes:
        position: that is filled, in every transcript's row.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int) -> None:
        self._shape = (2 * layers, kv_heads, head_dim)
        self._buffer: npt.NDArray[np.float32] | None = None
        self._rows: list[int] = []  # where each transcript is
        self._filled: set[int] = set()  # rows that hold what is shared
        self._bindings: dict[int, Any] = {}
        self.shared = self.position = 0

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return self._buffer.shape[3] if self._buffer is not None else 0

    def begin(self, position: int) -> None:
        """An utterance has so many positions of prompt and audio, and one transcript."""
        self.shared = self.position = position
        self._rows, self._filled = [], set()

    def make_room(self, rows: int, positions: int) -> None:
        """Room for so many transcripts and positions; what is there stays."""
        before = self._buffer
        if before is not None and before.shape[1] >= rows and before.shape[3] >= positions:
            return
        if before is not None:
            rows, positions = max(rows, before.shape[1]), max(positions, before.shape[3])
        layers, heads, size = self._shape
        self._buffer = lazy_zeros((layers, max(rows, PAYING_BEAMS), heads, positions, size))
        if before is not None and self._rows:
            self._buffer[:, : before.shape[1], :, : self.position] = before[:, :, :, : self.position]
        self._bindings.clear()

    def place(
        self, parents: Sequence[int], shared: Sequence[npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.int64]:
        """Transcript i goes on from transcript `parents[i]` of the last call → its row.

        Args:
            parents: of the transcripts; at first all 0.
            shared: (1, kv_heads, positions, head_dim) keys and values of each layer, to begin with.
        """
        assert self._buffer is not None
        count = len(parents)
        if self._rows:
            sources = [self._rows[parent] for parent in parents]
            rows = _assigned(sources, count)
            self._copy([(source, row) for source, row in zip(sources, rows, strict=True) if source != row])
        else:
            rows = list(range(count))
        for row in sorted(set(rows) - self._filled):
            for index, cache in enumerate(shared):
                self._buffer[index, row, :, : self.shared] = cache[0, :, : self.shared]
            self._filled.add(row)
        self._rows = rows
        return np.array(rows)

    def bound(self, count: int, runtime: Any, session: Any) -> Any:
        """A binding of the first `count` rows, as past and present of every layer."""
        binding = self._bindings.get(count)
        if binding is None:
            assert self._buffer is not None
            binding = self._bindings[count] = session.io_binding()
            bind_caches(runtime, binding, [layer[:count] for layer in self._buffer])
        return binding

    def _copy(self, moves: Sequence[tuple[int, int]]) -> None:
        """What is not shared. No row is written before it was read: `_assigned` overwrites those alone that nobody goes on from."""
        assert self._buffer is not None
        begin, end = self.shared, self.position
        for source, row in moves:
            self._buffer[:, row, :, begin:end] = self._buffer[:, source, :, begin:end]


def _assigned(sources: Sequence[int], count: int) -> list[int]:
    """A row below `count` for each transcript, its source's where it can be.

    The first that goes on from a row stays in it. The others take rows in which none stays.
    """
    rows: list[int] = [-1] * len(sources)
    taken: set[int] = set()
    for index, source in enumerate(sources):
        if source < count and source not in taken:
            rows[index] = source
            taken.add(source)
    free = iter([row for row in range(count) if row not in taken])
    return [row if row >= 0 else next(free) for row in rows]


def bind_caches(runtime: Any, binding: Any, arrays: Sequence[Float32]) -> None:
    """Past and present of every layer in the same memory; arrays: keys and values in turn."""
    for index, array in enumerate(arrays):
        name = f"{index // 2}.{'value' if index % 2 else 'key'}"
        buffer = runtime.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
        binding.bind_ortvalue_output(f"present.{name}", buffer)
