"""Audio in: any file that libsndfile or ffmpeg reads becomes 16 kHz mono float32, checked and cut into decodable pieces."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError, TooLongError, UnreadableError
from prunella.device_runtime.sound.downmix import Downmix
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.recording import CONVERT, Recording, check_rate, open_recording
from prunella.device_runtime.sound.resampling import StreamResampler, resample

MAX_CHANNELS = 32
HELD_SECONDS = 600.0
FULL_SCALE = 4.0  # a float file may go beyond 1; so far beyond, its samples are integers
_MOST_EXPECTED = 8 * 3600 * SAMPLE_RATE  # samples; a header that says more is not believed
_BLOCK = 1 << 16
_GATE_FRAME = SAMPLE_RATE * 30 // 1000
_QUIET_WINDOW = SAMPLE_RATE // 4
_QUIET_HOP = SAMPLE_RATE // 100


@dataclass(frozen=True)
class Audio:
    """A recording that was read once and found usable; a long one is read again, block by block, and never held whole.

    Attributes:
        name: what errors call it.
        count: samples at 16 kHz.
        blocks: → (n,) float32, mono at 16 kHz, n > 0; may be called again while the recording is open.
        held: (count,) float32, all samples, where it is short.
        notes: what of it was not read, in words.
    """

    name: str
    count: int
    blocks: Callable[[], Iterator[Float32]]
    held: Float32 | None = None
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def open_audio(
    source: str | Path | BinaryIO,
    *,
    max_seconds: float | None = None,
    name: str | None = None,
    held_seconds: float = HELD_SECONDS,
) -> Iterator[Audio]:
    """Open a wav, flac, ogg, opus or mp3 at any rate, channel count and bit depth; with ffmpeg also what else it reads.

    Args:
        source: a path, or a binary file object (need not be seekable).
        max_seconds: longest recording to take; a longer one is refused as soon as so much of it is decoded.
        name: what errors call it; by default its path or its own name.
        held_seconds: what is longer is decoded twice and takes no memory.

    Yields:
        The recording; its channels are averaged, unless they cancel each other: then it is the loudest.

    Raises:
        AudioError: missing, a directory, unreadable, not audio, empty, too long, or with NaN or infinite samples.
    """
    with open_recording(source, name) as recording:
        downmix = Downmix()
        first = _FirstReading(recording, held_seconds)
        first.read(_decode(recording, max_seconds, downmix.mean))
        chosen = downmix.mean
        if (channel := downmix.instead_of_mean()) is not None:
            chosen = functools.partial(_channel, channel)
            first = _FirstReading(recording, held_seconds)
            first.read(_decode(recording, max_seconds, chosen))
        scale = _checked_scale(first.low, first.high, first.count, recording.name)
        held = first.held
        if held is not None and scale != 1:
            held *= scale

        def blocks() -> Iterator[Float32]:
            if held is not None:
                yield from (held[start : start + _BLOCK] for start in range(0, len(held), _BLOCK))
                return
            for block in _decode(recording, max_seconds, chosen):
                yield block if scale == 1 else block * scale

        yield Audio(recording.name, first.count, blocks, held, recording.notes)


def load_audio(
    source: str | Path | BinaryIO, *, max_seconds: float | None = None, name: str | None = None
) -> Float32:
    """All samples of a recording, as `open_audio` reads it: memory is that of the result.

    Returns:
        (n,) float32 at 16 kHz, n > 0.

    Raises:
        AudioError: as `open_audio`.
    """
    with open_audio(source, max_seconds=max_seconds, name=name, held_seconds=math.inf) as audio:
        assert audio.held is not None
        return audio.held


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
        array = Downmix().live(array)
    if array.ndim != 1:
        raise AudioError(f"{name} has shape {array.shape}: give (samples,) or (samples, channels)")
    check_rate(rate, name)
    array = array.astype(np.float32, copy=False)
    low, high = (float(array.min()), float(array.max())) if len(array) else (0.0, 0.0)
    scale = _checked_scale(low, high, len(array), name)
    if scale != 1:
        array = array * scale
    if rate != SAMPLE_RATE:
        array = resample(array, rate)
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


def _checked_scale(low: float, high: float, count: int, name: str) -> np.float32:
    """By what `count` samples from `low` to `high` (NaN if one is) are multiplied: integers that were written as floats."""
    if not count:
        raise AudioError(f"{name} is empty: it has no samples; record it again")
    if not np.isfinite((low, high)).all():
        raise UnreadableError(f"{name} has NaN or infinite samples: {CONVERT}, or record it again")
    peak = max(high, -low)
    return np.float32(1 / peak if peak > FULL_SCALE else 1)


def _channel(channel: int, block: Float32) -> npt.NDArray[np.floating]:
    return block[:, channel]


def _decode(
    recording: Recording,
    max_seconds: float | None,
    downmix: Callable[[Float32], npt.NDArray[np.floating]],
) -> Iterator[Float32]:
    """Read, downmix and resample block by block → (n,) float32 at 16 kHz."""
    resampler = StreamResampler(recording.rate)
    frames = 0
    for block in recording.blocks():
        frames += len(block)
        if max_seconds is not None and frames > max_seconds * recording.rate:
            raise TooLongError(
                f"{recording.name} is longer than {max_seconds:g} s: cut it into shorter recordings"
            )
        yield resampler(downmix(block).astype(np.float32, copy=False))
    if len(rest := resampler.finish()):
        yield rest


class _FirstReading:
    """Counts and bounds of the samples, and the samples while they are few: in one array that grows, because a list of
    blocks that is joined in the end would take twice as much."""

    def __init__(self, recording: Recording, held_seconds: float) -> None:
        expected = min(recording.frames * SAMPLE_RATE / recording.rate, _MOST_EXPECTED)
        self._most = held_seconds * SAMPLE_RATE
        fits = expected <= self._most
        self._array: Float32 | None = np.empty(int(expected) + SAMPLE_RATE, np.float32) if fits else None
        self.count = 0
        self.low = self.high = 0.0

    @property
    def held(self) -> Float32 | None:
        return None if self._array is None else self._array[: self.count]

    def read(self, blocks: Iterator[Float32]) -> None:
        for block in blocks:
            if not len(block):
                continue
            # NaN if one is: it stays, whatever comes later.
            self.low = float(np.minimum(self.low, block.min()))
            self.high = float(np.maximum(self.high, block.max()))
            self._hold(block)
            self.count += len(block)

    def _hold(self, block: Float32) -> None:
        count = self.count + len(block)
        if self._array is not None and count > self._most:
            self._array = None
        if self._array is None:
            return
        if count > len(self._array):
            grown = np.empty(count + count // 4, np.float32)
            grown[: self.count] = self._array[: self.count]
            self._array = grown
        self._array[self.count : count] = block


def _scale_integers(array: npt.NDArray[np.generic]) -> Float32:
    bits = 8 * array.dtype.itemsize
    scaled = array.astype(np.float64)
    if array.dtype.kind == "u":  # unsigned samples are centred on half their range
        scaled -= 2.0 ** (bits - 1)
    return (scaled / 2.0 ** (bits - 1)).astype(np.float32)
