"""What every live source gives: blocks of 16 kHz mono, from any rate and channel count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.sound.downmix import Downmix
from prunella.device_runtime.sound.resampling import StreamResampler


@dataclass(frozen=True)
class AudioBlock:
    """(n,) float32 mono samples at 16 kHz, n >= 0.

    `dropped`: samples at 16 kHz that were lost just before them. `captured`: `time.perf_counter()` at their capture.
    """

    samples: Float32
    dropped: int = 0
    captured: float | None = None


class LiveResampler:
    """Blocks at a device's rate to 16 kHz mono, the same samples as `load_audio` makes of the whole.

    Args:
        rate: of the source, in Hz.
    """

    def __init__(self, rate: float) -> None:
        self._downmix = Downmix()
        self._resampler = StreamResampler(rate)

    def __call__(self, block: Float32) -> Float32:
        """(n,) or (n, channels) float32 → (m,) float32; the resampler holds a few milliseconds back."""
        mono = block if block.ndim == 1 else self._downmix.live(block).astype(np.float32, copy=False)
        return self._resampler(mono)

    def finish(self) -> Float32:
        """What was held back."""
        return self._resampler.finish()
