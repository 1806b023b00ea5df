"""Audio in: any file that libsndfile or ffmpeg reads becomes 16 kHz mono float32, checked and cut into decodable pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soxr

from prunella.device_runtime.errors import AudioError, TooLongError, UnreadableError
from prunella.device_runtime.log_mel import SAMPLE_RATE
from prunella.device_runtime.recording import CONVERT, Recording, check_rate, open_recording

Float32 = npt.NDArray[np.float32]

MAX_CHANNELS = 32
_FULL_SCALE = 4.0  # a float file may go beyond 1; so far beyond, its samples are integers
_CANCELED = 0.03  # of the loudest channel's energy (-15 dB)
_MOST_EXPECTED = 8 * 3600 * SAMPLE_RATE  # samples; a header that says more is not believed
_GATE_FRAME = SAMPLE_RATE * 30 // 1000
_QUIET_WINDOW = SAMPLE_RATE // 4
_QUIET_HOP = SAMPLE_RATE // 100


def load_audio(
    source: str | Path | BinaryIO, *, max_seconds: float | None = None, name: str | None = None
) -> Float32:
    """Decode a wav, flac, ogg, opus or mp3 at any rate, channel count and bit depth; with ffmpeg also what else it reads.

    The file is decoded, downmixed and resampled in blocks: memory is that of the result (230 MB for an hour).

    Args:
        source: a path, or a binary file object (need not be seekable).
        max_seconds: longest recording to take; a longer one is refused as soon as so much of it is decoded.
        name: what errors call it; by default its path or its own name.

    Returns:
        (n,) float32 at 16 kHz, n > 0; channels are averaged, unless they cancel each other: then it is the loudest.

    Raises:
        AudioError: missing, a directory, unreadable, not audio, empty, too long, or with NaN or infinite samples.
    """
    with open_recording(source, name) as recording:
        levels = ChannelLevels()
        samples = _decode(recording, max_seconds, levels.downmix)
        if (channel := levels.instead_of_mean()) is not None:
            del samples
            samples = _decode(recording, max_seconds, lambda block: block[:, channel])
        return check_samples(samples, SAMPLE_RATE, name=recording.name)


def check_samples(samples: npt.ArrayLike, rate: int | float, *, name: str = "the audio") -> Float32:
    """Check samples that are already in memory and bring them to 16 kHz mono.

    Args:
        samples: (n,) or (n, channels); floats in [-1, 1], or integers, which are scaled by their type's range.
        rate: their sampling rate in Hz.
        name: what errors call them.

    Returns:
        (m,) float32 at 16 kHz, m > 0.

    Raises:
        AudioError: not numbers, another shape, a rate that is not positive, empty, or NaN or infinite samples.
    """
    array = np.asarray(samples)
    if array.dtype.kind in "iu":
        array = _scale_integers(array)
    elif array.dtype.kind != "f":
        raise AudioError(f"{name} has samples of type {array.dtype}: give floats in [-1, 1] or integers")
    if array.ndim == 2 and 1 <= array.shape[1] <= MAX_CHANNELS:
        levels = ChannelLevels()
        mono = levels.downmix(array)
        channel = levels.instead_of_mean()
        array = mono if channel is None else array[:, channel]
    if array.ndim != 1:
        raise AudioError(f"{name} has shape {array.shape}: give (samples,) or (samples, channels)")
    check_rate(rate, name)
    array = array.astype(np.float32, copy=False)
    if not len(array):
        raise AudioError(f"{name} is empty: it has no samples; record it again")
    low, high = float(array.min()), float(array.max())  # NaN if one is, and no array of booleans
    if not np.isfinite((low, high)).all():
        raise UnreadableError(f"{name} has NaN or infinite samples: {CONVERT}, or record it again")
    if max(high, -low) > _FULL_SCALE:  # integers that were written as floats
        array = (array / max(high, -low)).astype(np.float32)
    if rate != SAMPLE_RATE:
        array = soxr.resample(array, rate, SAMPLE_RATE)
        if not len(array):
            raise AudioError(f"{name} is too short: it has less than one sample at {SAMPLE_RATE} Hz")
    return array


def split_at_quiet_points(samples: Float32, max_seconds: float = 29.5) -> list[tuple[int, int]]:
    """Cut long audio into pieces that a model can take, each cut in the quietest moment near the piece's end.

    Args:
        samples: (n,) at 16 kHz.
        max_seconds: longest piece.

    Returns:
        Half-open ranges (start, stop) in samples: in order, never empty, every sample in exactly one. A quiet moment is
        the 250 ms with the least energy in the last third of what a piece may hold; of several the last.
    """
    longest = int(max_seconds * SAMPLE_RATE)
    if longest < 1:
        raise ValueError(f"max_seconds must be at least one sample, got {max_seconds}")
    pieces = []
    start = 0
    while len(samples) - start > longest:
        # The last piece is kept from being a sliver, which a model would have no context for.
        latest = min(longest, max(len(samples) - start - SAMPLE_RATE, longest * 2 // 3 + 1))
        earliest = longest * 2 // 3
        stop = start + earliest + _quietest(samples[start + earliest : start + latest])
        pieces.append((start, stop))
        start = stop
    if start < len(samples):
        pieces.append((start, len(samples)))
    return pieces


def is_silent(samples: Float32, dbfs: float) -> bool:
    """Whether even the loudest 30 ms of (n,) samples at 16 kHz are below `dbfs` (RMS; 0 dBFS is a full-scale square)."""
    if not len(samples):
        return True
    frames = np.pad(samples, (0, -len(samples) % _GATE_FRAME)).reshape(-1, _GATE_FRAME)
    loudest = np.einsum("ij,ij->i", frames, frames).max() / _GATE_FRAME
    return bool(loudest < 10.0 ** (dbfs / 10.0))


def _quietest(samples: Float32) -> int:
    """Offset in 1..n of the centre of the quietest window in (n,) samples, n > 0."""
    window = min(_QUIET_WINDOW, len(samples))
    energy = np.concatenate(([0.0], np.cumsum(np.square(samples, dtype=np.float64))))
    starts = np.arange(0, len(samples) - window + 1, _QUIET_HOP)
    sums = energy[starts + window] - energy[starts]
    last_of_the_lowest = len(sums) - 1 - int(np.argmin(sums[::-1]))
    return max(1, int(starts[last_of_the_lowest]) + window // 2)


class ChannelLevels:
    """Downmixes blocks and learns whether the channels cancel each other: a balanced cable split into left and right."""

    def __init__(self) -> None:
        self._channels: npt.NDArray[np.float64] | float = 0.0
        self._mean = 0.0

    def downmix(self, block: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """(n, channels) → (n,): their mean, or the only one."""
        if block.shape[1] == 1:
            return block[:, 0]
        mono = block.mean(axis=1)
        self._channels = self._channels + np.einsum("ij,ij->j", block, block, dtype=np.float64)
        self._mean += float(np.einsum("i,i->", mono, mono, dtype=np.float64))
        return mono

    def instead_of_mean(self) -> int | None:
        """The loudest channel, where the mean of what was downmixed is far below it."""
        if isinstance(self._channels, float) or not np.isfinite(self._channels).all():
            return None
        loudest = int(np.argmax(self._channels))
        return loudest if self._mean < _CANCELED * self._channels[loudest] else None


def _decode(
    recording: Recording,
    max_seconds: float | None,
    downmix: Callable[[Float32], npt.NDArray[np.floating]],
) -> Float32:
    """Read, downmix and resample block by block → (n,) float32 at 16 kHz."""
    rate = recording.rate
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None
    samples = _Samples(recording.frames * SAMPLE_RATE / rate)
    frames = 0
    for block in recording.blocks():
        frames += len(block)
        if max_seconds is not None and frames > max_seconds * rate:
            raise TooLongError(
                f"{recording.name} is longer than {max_seconds:g} s: cut it into shorter recordings"
            )
        mono = downmix(block).astype(np.float32, copy=False)
        samples.append(stream.resample_chunk(mono) if stream else mono)
    if stream:
        samples.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return samples.taken()


class _Samples:
    """Samples in one array that grows: no list of blocks that is joined in the end, which would take twice as much."""

    def __init__(self, expected: float) -> None:
        self._array = np.empty(int(min(expected, _MOST_EXPECTED)) + SAMPLE_RATE, np.float32)
        self._count = 0

    def append(self, block: Float32) -> None:
        count = self._count + len(block)
        if count > len(self._array):
            grown = np.empty(count + count // 4, np.float32)
            grown[: self._count] = self._array[: self._count]
            self._array = grown
        self._array[self._count : count] = block
        self._count = count

    def taken(self) -> Float32:
        return self._array[: self._count]


def _scale_integers(array: npt.NDArray[np.generic]) -> Float32:
    bits = 8 * array.dtype.itemsize
    scaled = array.astype(np.float64)
    if array.dtype.kind == "u":  # unsigned samples are centred on half their range
        scaled -= 2.0 ** (bits - 1)
    return (scaled / 2.0 ** (bits - 1)).astype(np.float32)
