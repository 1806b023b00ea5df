"""What a bridge is fitted on, kept on disk: for decoders whose sums would take more memory than one of their layers.

Six blocks that are alternatives to each other want six (F, F) sums; with F = 14,336 in float64 that is 10 GB. Here the rows
themselves are kept, in files that have no name, and summed for one bridge at a time: over positions where these are fewer
than features (the dual form of ridge regression, the same solution), else over features, factored in place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import cho_factor, cho_solve
from torch import nn

from prunella.pruning.bridge_sums import Method
from prunella.speech_llm.streaming import LayerStream, source_of

_ROWS_AT_ONCE = 1_024
_COLUMNS_AT_ONCE = 1_024


@dataclass(frozen=True)
class StoredProjection:
    """The down projection of a layer that stays on disk: where it is read again when it is wanted."""

    stream: LayerStream
    layer: nn.Module
    module: nn.Linear

    @property
    def name(self) -> str:
        """Of its weight, in the decoder as it was read."""
        path = next(name for name, one in self.layer.named_modules() if one is self.module)
        return f"{source_of(self.layer)}{path}.weight"

    @property
    def dtype(self) -> torch.dtype:
        """That it is stored in."""
        return self.stream.files[self.stream.names[self.name]].dtype

    def weight(self) -> torch.Tensor:
        """(hidden, F) float32."""
        if not self.module.weight.is_meta:
            return self.module.weight.detach()
        return self.stream.files.read(self.stream.names[self.name])


class BridgeRows:
    """Rows of one gap: a (n, F), and the error h - Y - M (n, hidden), weighted; the interface is that of `BridgeSums`.

    Args:
        projection: of the receiving layer.
        scale: as of `BridgeSums`.
    """

    def __init__(self, projection: StoredProjection, scale: float = 1.0) -> None:
        self.projection = projection
        self.scale = scale
        self.width, self.hidden = projection.module.in_features, projection.module.out_features
        self.count = 0
        # In TMPDIR; gone with the process, however it ends.
        self._activations: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this lives
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this lives

    def add(self, activations: torch.Tensor, output: torch.Tensor, target: torch.Tensor) -> None:
        """As `BridgeSums.add`."""
        for part in zip(*(one.split(_ROWS_AT_ONCE) for one in (activations, output, target)), strict=True):
            rows, made, wanted = (one.double() for one in part)
            scale = 1.0 / wanted.norm(dim=-1, keepdim=True).clamp_min(1e-9)
            self._activations.write((rows * scale).float().numpy().data)
            self._errors.write(((wanted - made) * scale).float().numpy().data)
            self.count += len(rows)

    def solutions(self, ridges: Sequence[float], method: Method = Method.REFIT) -> Iterator[torch.Tensor]:
        """The new down projection (hidden, F) float32 for each ridge."""
        weight = self.projection.weight()
        if method is Method.MAP:
            for found in _primal(self._mapped(weight), self.hidden, self.hidden, ridges):
                yield weight + torch.from_numpy(found).float() @ weight / self.scale
        elif self.count < self.width:
            for change in self._dual(ridges):
                yield change.div_(self.scale).add_(weight)
        else:
            for found in _primal(self._parts(), self.width, self.hidden, ridges):
                yield torch.from_numpy(found).float().div_(self.scale).add_(weight)

    def solve(self, ridge: float, method: Method = Method.REFIT) -> torch.Tensor:
        """The new down projection (hidden, F), float32."""
        return next(self.solutions([ridge], method))

    def _dual(self, ridges: Sequence[float]) -> Iterator[torch.Tensor]:
        """(hidden, F) float32, by sums over positions."""
        (rows, errors), *_ = self._parts(self.count)
        products = np.zeros((self.count, self.count))
        for start in range(0, self.width, _COLUMNS_AT_ONCE):
            part = rows[:, start : start + _COLUMNS_AT_ONCE].astype(np.float64)
            products += part @ part.T
        trace = float(np.trace(products))
        for alpha in _solve_each(products, errors.T, [ridge * trace / self.width for ridge in ridges]):
            change = torch.empty(self.hidden, self.width)
            for start in range(0, self.width, _COLUMNS_AT_ONCE):
                part = rows[:, start : start + _COLUMNS_AT_ONCE].astype(np.float64)
                change[:, start : start + _COLUMNS_AT_ONCE] = torch.from_numpy(alpha @ part)
            yield change

    def _parts(self, size: int = _ROWS_AT_ONCE) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Activations (n, F) and errors (n, hidden) float32, `size` rows at a time."""
        for start in range(0, self.count, max(size, 1)):
            count = min(size, self.count - start)
            yield (
                _read(self._activations, start, count, self.width),
                _read(self._errors, start, count, self.hidden),
            )

    def _mapped(self, weight: torch.Tensor) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        for rows, errors in self._parts():
            yield (torch.from_numpy(rows) @ weight.T).numpy(), errors


def _primal(
    parts: Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    width: int,
    hidden: int,
    ridges: Sequence[float],
) -> Iterator[npt.NDArray[np.float64]]:
    """(hidden, width) for each ridge, by sums over features."""
    moments = torch.zeros(width, width, dtype=torch.float64)
    right = torch.zeros(hidden, width, dtype=torch.float64)
    for rows, errors in parts:
        row, error = torch.from_numpy(rows).double(), torch.from_numpy(errors).double()
        moments.addmm_(row.T, row)
        right.addmm_(error.T, row)
    mean = float(moments.diagonal().mean())
    yield from _solve_each(moments.numpy(), right.numpy(), [ridge * mean for ridge in ridges])


def _solve_each(
    matrix: npt.NDArray[np.float64], right: npt.NDArray[Any], dampings: Sequence[float]
) -> Iterator[npt.NDArray[np.float64]]:
    """Rows x (m, n) with x (matrix + damping) = right, for each damping; `matrix` (n, n), symmetric, is worked on in place."""
    diagonal = matrix.diagonal().copy()
    for damping in dampings:
        np.fill_diagonal(matrix, diagonal + damping)
        # LAPACK reads columns: of the transposed matrix it overwrites the lower half, which is the upper one here.
        factor = cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        columns = np.array(right, dtype=np.float64, order="C").T
        yield cho_solve(factor, columns, overwrite_b=True, check_finite=False).T
        _mirror(matrix)


def _mirror(matrix: npt.NDArray[np.float64]) -> None:
    """Write the lower half over the upper one."""
    size = _COLUMNS_AT_ONCE
    for start in range(0, len(matrix), size):
        stop = min(start + size, len(matrix))
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
        block = np.tril(matrix[start:stop, start:stop], -1)
        matrix[start:stop, start:stop] = block + block.T


def _read(file: IO[bytes], start: int, count: int, width: int) -> npt.NDArray[Any]:
    file.flush()
    rows = np.empty((count, width), dtype=np.float32)
    file.seek(start * width * 4)
    file.readinto(rows.data)  # type: ignore[attr-defined]
    return rows
