"""Streams for live tests: recorded speech at known times, and everything that is not speech."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.live.audio_block import AudioBlock
from prunella.device_runtime.live.capture_queue import CaptureQueue
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.evaluation.manifest import Utterance

BLOCK = SAMPLE_RATE // 10


@dataclass(frozen=True)
class Spoken:
    """A clip and the seconds of the stream in which it is heard."""

    t0: float
    t1: float
    clip: str
    text: str


class SpeechAtKnownTimes:
    """Clips in random order with pauses of quiet noise between them, made as they are iterated.

    Iterating yields (1600,) float32 blocks at 16 kHz; `spoken` lists what was said so far.

    Args:
        utterances: where the clips come from; silence at their ends is as recorded.
        seconds: of the stream; the last pause makes up for what no clip fits into.
        seed: of order, pauses and noise.
        pause: shortest and longest pause in seconds.
        noise_dbfs: RMS of the noise under everything.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        seconds: float,
        *,
        seed: int = 0,
        pause: tuple[float, float] = (1.0, 4.0),
        noise_dbfs: float = -62.0,
    ) -> None:
        self._clips = [(utterance, utterance.load()) for utterance in utterances]
        self._seconds = seconds
        self._random = np.random.default_rng(seed)
        self._pause = pause
        self._noise = 10.0 ** (noise_dbfs / 20.0)
        self.spoken: list[Spoken] = []

    def __iter__(self) -> Iterator[Float32]:
        total = int(self._seconds * SAMPLE_RATE)
        rest = np.zeros(0, np.float32)
        for piece in self._pieces(total):
            piece = piece + self._noise * self._random.standard_normal(len(piece)).astype(np.float32)
            rest = np.concatenate((rest, piece))
            whole = len(rest) // BLOCK * BLOCK
            for begin in range(0, whole, BLOCK):
                yield rest[begin : begin + BLOCK]
            rest = rest[whole:]
        if len(rest):
            yield rest

    def _pieces(self, total: int) -> Iterator[Float32]:
        position = 0
        order: list[int] = []
        while position < total:
            gap = min(int(self._random.uniform(*self._pause) * SAMPLE_RATE), total - position)
            yield np.zeros(gap, np.float32)
            position += gap
            order = order or list(self._random.permutation(len(self._clips)))
            utterance, samples = self._clips[order.pop()]
            if position + len(samples) + SAMPLE_RATE > total:
                continue  # another pause, and perhaps a shorter clip
            t0, t1 = position / SAMPLE_RATE, (position + len(samples)) / SAMPLE_RATE
            self.spoken.append(Spoken(t0, t1, utterance.audio.name, utterance.text))
            yield samples
            position += len(samples)


class PacedSource:
    """A microphone that is played: a thread puts blocks into the bounded queue at `speed` times real time.

    Iterate it once. `speed` may be changed while it runs, `blocks` before.
    """

    def __init__(self, blocks: Iterator[Float32], *, speed: float = 1.0, queue_seconds: float = 30.0) -> None:
        self.blocks = blocks
        self.speed = speed
        self._queue = CaptureQueue(int(queue_seconds * SAMPLE_RATE))
        self._stopping = threading.Event()
        self.delivered = 0

    @property
    def dropped(self) -> int:
        return self._queue.dropped

    def stop(self) -> None:
        """End the iteration after what waits."""
        self._stopping.set()

    def __iter__(self) -> Iterator[AudioBlock]:
        thread = threading.Thread(target=self._play, daemon=True)
        thread.start()
        while (item := self._queue.take(60.0)) is not None:
            yield AudioBlock(item.frames, item.lost, item.moment)
        yield AudioBlock(np.zeros(0, np.float32), self._queue.lost_at_end())
        thread.join()

    def _play(self) -> None:
        due = time.perf_counter()
        for block in self.blocks:
            due += len(block) / SAMPLE_RATE / self.speed
            time.sleep(max(0.0, due - time.perf_counter()))
            if self._stopping.is_set():
                break
            self.delivered += len(block)
            self._queue.put(block, time.perf_counter())
        self._queue.wake()


def not_speech(seconds: float, seed: int = 0) -> Iterator[tuple[str, Float32]]:
    """Noise, music-like tones, silence and clicks in equal parts, at several levels → (kind, block of 100 ms)."""
    random = np.random.default_rng(seed)
    makers: dict[str, Callable[[int], npt.NDArray[np.float64]]] = {
        "silence": lambda n: np.zeros(n),
        "white noise": lambda n: 0.02 * random.standard_normal(n),
        "loud noise": lambda n: 0.2 * random.standard_normal(n),
        "pink noise": lambda n: _pink(random, n, 0.08),
        "hum": lambda n: 0.05 * np.sin(2 * np.pi * 50 * np.arange(n) / SAMPLE_RATE),
        "music": lambda n: _music(random, n),
        "clicks": lambda n: _clicks(random, n),
        "babble of tones": lambda n: _tones(random, n),
    }
    each = int(seconds * SAMPLE_RATE / len(makers))
    for kind, make in makers.items():
        samples = np.clip(make(each), -1, 1).astype(np.float32)
        for begin in range(0, each, BLOCK):
            yield kind, samples[begin : begin + BLOCK]


def _pink(random: np.random.Generator, count: int, scale: float) -> npt.NDArray[np.float64]:
    spectrum = np.fft.rfft(random.standard_normal(count))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))), count)
    return scale * pink / np.sqrt(np.mean(np.square(pink)))


def _music(random: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Chords of decaying harmonics, two a second."""
    out = np.zeros(count)
    length = SAMPLE_RATE // 2
    time_axis = np.arange(length) / SAMPLE_RATE
    for begin in range(0, count - length, length):
        for note in random.choice([0, 2, 4, 5, 7, 9, 11], 3, replace=False):
            pitch = 220.0 * 2.0 ** (note / 12)
            for harmonic in range(1, 6):
                tone = np.sin(2 * np.pi * pitch * harmonic * time_axis) / harmonic
                out[begin : begin + length] += 0.08 * tone * np.exp(-3 * time_axis)
    return out


def _clicks(random: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Knocks of 2 to 30 ms, three a second."""
    out = 0.001 * random.standard_normal(count)
    for begin in random.integers(0, max(1, count - 500), 3 * count // SAMPLE_RATE):
        length = int(random.integers(32, 480))
        out[begin : begin + length] += 0.6 * random.standard_normal(length) * np.exp(-np.arange(length) / 60)
    return out


def _tones(random: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Sweeping tones that start and stop like syllables."""
    phase = np.cumsum(2 * np.pi * (500 + 400 * np.sin(np.arange(count) / SAMPLE_RATE * 7)) / SAMPLE_RATE)
    gate = np.repeat(random.integers(0, 2, count // 3_200 + 1), 3_200)[:count]
    return 0.2 * np.sin(phase) * gate
