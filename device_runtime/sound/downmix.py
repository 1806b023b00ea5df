"""Channels to one: their mean, except where they cancel each other (a balanced cable that was split into left and right)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_CANCELED = 0.1  # of the energy that the mean of unrelated channels would have (-10 dB)


class Downmix:
    """Downmixes the blocks of one stream and learns whether its channels cancel each other."""

    def __init__(self) -> None:
        self._channels: npt.NDArray[np.float64] | float = 0.0
        self._mean = 0.0

    def mean(self, block: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        """(n, channels) → (n,): their mean, or the only one."""
        if block.shape[1] == 1:
            return block[:, 0]
        with np.errstate(invalid="ignore"):  # infinite samples are refused later, in words
            mono: npt.NDArray[np.floating[Any]] = block.mean(axis=1)
        self._channels = self._channels + np.einsum("ij,ij->j", block, block, dtype=np.float64)
        self._mean += float(np.einsum("i,i->", mono, mono, dtype=np.float64))
        return mono

    def live(self, block: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        """As `mean`; the loudest channel, where the channels of the stream so far cancel each other."""
        mono = self.mean(block)
        channel = self.instead_of_mean()
        return mono if channel is None else block[:, channel]

    def instead_of_mean(self) -> int | None:
        """The loudest channel, where the mean of what was downmixed is far below what unrelated channels would give."""
        if isinstance(self._channels, float) or not np.isfinite(self._channels).all():
            return None
        unrelated = float(self._channels.sum()) / len(self._channels) ** 2
        return int(np.argmax(self._channels)) if self._mean < _CANCELED * unrelated else None
