"""Where in a recording someone speaks, found while it is read: no more of it is held than is still needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.sound.audio import split_at_quiet_points
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.turn_detector import (
    FRAME,
    TurnClosed,
    TurnDetector,
    TurnEvent,
    TurnOptions,
)
from prunella.device_runtime.sound.vad import TOGETHER, FrameListener, SpeechDetector, as_frames

# Nobody waits for a file's answer: pauses within a sentence end nothing, and quiet on either side makes fewer words wrong.
FILE_TURNS = TurnOptions(end_silence=1.0, pre_roll=0.5, tail=0.5)
_PAUSE = int(FILE_TURNS.end_silence * SAMPLE_RATE)
_KEPT = int(FILE_TURNS.tail * SAMPLE_RATE)


@dataclass(frozen=True)
class Stretch:
    """Samples [start, stop) of a recording at 16 kHz; `samples`: (stop - start,) float32, None where nobody speaks."""

    start: int
    stop: int
    samples: Float32 | None = None


def find_utterances(
    blocks: Iterable[Float32], vad: SpeechDetector, options: TurnOptions = FILE_TURNS
) -> Iterator[Stretch]:
    """The stretches of a recording that hold speech: in order, apart, none too long for a model.

    Args:
        blocks: (n,) float32 at 16 kHz, one after the other.
        vad: fresh.
    """
    detector = TurnDetector(options)
    window = _Window()

    def closed(events: list[TurnEvent]) -> Iterator[Stretch]:
        for event in events:
            if isinstance(event, TurnClosed):
                yield window.stretch(event.start, event.stop)

    rest = 0
    for frame in _frames(blocks):
        window.append(frame)
        if len(frame) < FRAME:
            rest = len(frame)
            break
        yield from closed(detector.push(vad(frame), float(frame @ frame)))
        window.forget(detector.needed_from)
    yield from closed(detector.finish(rest))


def cut_in_pauses(blocks: Iterable[Float32], hears: FrameListener, max_seconds: float) -> Iterator[Stretch]:
    """A recording in pieces that a model can take, cut where nobody speaks for a second: a model that hears a long pause
    takes what comes behind it for nothing.

    Half a second of quiet is kept on either side of speech. What is still too long is cut at quiet points.

    Args:
        blocks: (n,) float32 at 16 kHz, one after the other.
        hears: which of the next frames are speech.
        max_seconds: longest piece.

    Returns:
        Stretches: every sample in exactly one, in order.
    """
    longest = int(max_seconds * SAMPLE_RATE)
    window = _Window()
    start = 0  # of the stretch that is open
    spoken = 0  # end of the last frame with speech
    speaking = False

    def pieces(stop: int) -> Iterator[Stretch]:
        samples = window.take(start, stop)
        for begin, end in split_at_quiet_points(samples, max_seconds):
            yield Stretch(start + begin, start + end, samples[begin:end])

    for frame, speech in _judged(blocks, hears):
        begin = window.stop
        window.append(frame)
        if speech:
            if not speaking and begin - start > (_PAUSE if start == 0 else _KEPT):
                yield Stretch(start, begin - _KEPT)
                start = begin - _KEPT
            speaking = True
            spoken = window.stop
        elif speaking and window.stop - spoken >= _PAUSE:
            yield from pieces(spoken + _KEPT)
            start = spoken + _KEPT
            speaking = False
        if speaking and window.stop - start > longest + SAMPLE_RATE:
            # As much as decides where the first piece ends.
            first = next(pieces(window.stop))
            yield first
            start = first.stop
        window.forget(start if speaking else max(start, window.stop - _PAUSE - FRAME))
    if speaking:
        yield from pieces(window.stop)
    elif start < window.stop:
        yield Stretch(start, window.stop)


class _Window:
    """The last samples of a stream."""

    def __init__(self) -> None:
        self._frames: deque[Float32] = deque()
        self._base = 0
        self.stop = 0

    def append(self, frame: Float32) -> None:
        self._frames.append(frame)
        self.stop += len(frame)

    def take(self, start: int, stop: int) -> Float32:
        first = (start - self._base) // FRAME
        last = -(-(stop - self._base) // FRAME)
        frames = [self._frames[index] for index in range(first, min(last, len(self._frames)))]
        begin = self._base + first * FRAME
        return np.concatenate(frames)[start - begin : stop - begin]

    def stretch(self, start: int, stop: int) -> Stretch:
        return Stretch(start, stop, self.take(start, stop))

    def forget(self, before: int) -> None:
        while self._base + FRAME <= before:
            self._frames.popleft()
            self._base += FRAME


def _judged(blocks: Iterable[Float32], hears: FrameListener) -> Iterator[tuple[Float32, bool]]:
    """`_frames`, and whether somebody speaks in each."""
    for part in _parts(blocks):
        for start, speech in zip(range(0, len(part), FRAME), hears(as_frames(part)).tolist(), strict=True):
            yield part[start : start + FRAME], speech


def _frames(blocks: Iterable[Float32]) -> Iterator[Float32]:
    """Frames of 512 samples, the last with what is left."""
    for part in _parts(blocks):
        for start in range(0, len(part), FRAME):
            yield part[start : start + FRAME]


def _parts(blocks: Iterable[Float32]) -> Iterator[Float32]:
    """Whole frames as they come, up to `TOGETHER` samples of them, the last part with what is left."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        joined = np.concatenate((rest, block)) if len(rest) else block
        whole = len(joined) // FRAME * FRAME
        for begin in range(0, whole, TOGETHER):
            yield joined[begin : min(begin + TOGETHER, whole)]
        rest = joined[whole:]
    if len(rest):
        yield rest
