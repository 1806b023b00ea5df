"""Sampling rates: the only module that names soxr."""

from __future__ import annotations

import numpy as np
import soxr

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE


def resample(samples: Float32, rate: float, target: float = SAMPLE_RATE) -> Float32:
    """(n,) float32 at `rate` Hz → (m,) float32 at `target` Hz, m about n * target / rate; perhaps 0."""
    resampled: Float32 = soxr.resample(samples, rate, target)
    return resampled


class StreamResampler:
    """Blocks of one stream to 16 kHz: joined, the samples that `resample` makes of the whole.

    Args:
        rate: of the stream, in Hz; at 16 kHz blocks pass as they are.
    """

    def __init__(self, rate: float) -> None:
        self._stream = (
            soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None
        )

    def __call__(self, block: Float32, *, last: bool = False) -> Float32:
        """(n,) float32 → (m,) float32 at 16 kHz; a few milliseconds are held back until the `last` block."""
        return block if self._stream is None else self._stream.resample_chunk(block, last=last)

    def finish(self) -> Float32:
        """(m,) float32: what was held back."""
        return self(np.zeros(0, np.float32), last=True)
