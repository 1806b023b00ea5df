"""Where an utterance begins and ends: a pure state machine over speech probabilities. No model, no clock.

Time is the number of frames pushed. Every sample of the stream ends up in exactly one range: an utterance
(`TurnClosed`) or a silence (`Silence`), in order and without gaps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE

FRAME = 512  # samples; what Silero judges at once at 16 kHz
LONGEST_UTTERANCE = 29.5  # seconds; Whisper's encoder has positions for 30


@dataclass(frozen=True)
class TurnOptions:
    """When a turn begins and ends, in seconds; rounded to whole frames of 32 ms."""

    threshold: float = 0.5  # probability from which silence becomes speech
    negative_threshold: float = 0.35  # and below which speech becomes silence
    pre_roll: float = 0.3  # audio kept from before the first speech frame
    minimum_speech: float = 0.2  # less speech than this is no utterance
    end_silence: float = 0.5  # silence that ends an utterance
    tail: float = 0.2  # of it, what an utterance keeps; after it the final text is guessed
    maximum: float = 28.0  # an utterance this long is split at its quietest frame
    silence_report: float = 10.0  # a silence is reported in pieces of this length

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise UsageError(
                    f"{field.name.replace('_', ' ')} is {getattr(self, field.name)}: give a number above 0"
                )
        if not self.negative_threshold <= self.threshold <= 1:
            raise UsageError("thresholds must be at most 1, and the negative one not above the other")
        if self.end_silence < self.tail:
            raise UsageError(f"end_silence {self.end_silence} s is shorter than the tail of {self.tail} s")
        if self.maximum > LONGEST_UTTERANCE:
            raise UsageError(f"maximum is {self.maximum} s: a model takes {LONGEST_UTTERANCE} s at most")
        if self.maximum < 3 * (self.pre_roll + self.minimum_speech + self.end_silence):
            raise UsageError(f"maximum is {self.maximum} s: too short for this pre-roll and end silence")


@dataclass(frozen=True)
class TurnOpened:
    """Enough speech was heard. `start` lies before the first speech frame, by the pre-roll."""

    utterance_id: int
    start: int


@dataclass(frozen=True)
class TurnPaused:
    """The speaker fell silent for the tail: [start, stop) is the whole utterance, unless speech goes on."""

    utterance_id: int
    start: int
    stop: int


@dataclass(frozen=True)
class TurnResumed:
    """Speech went on after a `TurnPaused`."""

    utterance_id: int


@dataclass(frozen=True)
class TurnClosed:
    """The utterance is samples [start, stop); its last speech frame ends at `speech_stop`.

    `reason`: "silence", "split" (too long: the next one is already open), or "end" of the stream.
    """

    utterance_id: int
    start: int
    stop: int
    speech_stop: int
    reason: Literal["silence", "split", "end"]


@dataclass(frozen=True)
class Silence:
    """Samples [start, stop) belong to no utterance."""

    start: int
    stop: int


TurnEvent = TurnOpened | TurnPaused | TurnResumed | TurnClosed | Silence


class TurnDetector:
    """Feed it one probability per frame; at most one utterance is open at a time, and ids only rise."""

    def __init__(self, options: TurnOptions | None = None) -> None:
        self.options = options or TurnOptions()
        self._pre_roll = _frames(self.options.pre_roll)
        self._minimum = _frames(self.options.minimum_speech)
        self._tail = _frames(self.options.tail)
        self._end = _frames(self.options.end_silence)
        self._maximum = int(self.options.maximum * SAMPLE_RATE / FRAME)
        self._report = _frames(self.options.silence_report)
        self._id = 0
        self._count = 0  # frames seen
        self._floor = 0  # frames before this one have been given to an utterance or a silence
        self._start: int | None = None  # of the open utterance
        self._first: int | None = None  # first speech frame, while there is too little speech to open
        self._voiced = 0
        self._last = 0  # frame after the last speech frame
        self._speaking = False
        self._paused = False
        self._energies: list[float] = []  # of the open utterance's frames since it opened

    @property
    def utterance_id(self) -> int:
        """Of the open utterance, or of the last one; 0 before the first."""
        return self._id

    @property
    def open_since(self) -> int | None:
        """First sample of the open utterance, or None."""
        return None if self._start is None else self._start * FRAME

    @property
    def needed_from(self) -> int:
        """Samples before this one will not be asked for again."""
        if self._start is not None:
            return self._start * FRAME
        first = self._count if self._first is None else self._first
        return max(self._floor, first - self._pre_roll) * FRAME

    def push(self, probability: float, energy: float) -> list[TurnEvent]:
        """Judge the next frame of 512 samples.

        Args:
            probability: of speech, 0 to 1.
            energy: any measure that rises with loudness; decides where a long utterance is split.
        """
        frame = self._count
        self._count += 1
        bar = self.options.negative_threshold if self._speaking else self.options.threshold
        self._speaking = probability >= bar
        return self._idle(frame) if self._start is None else self._open(self._start, energy)

    def finish(self, extra: int = 0) -> list[TurnEvent]:
        """The stream ends, `extra` samples (less than a frame) after the last frame. An open utterance closes."""
        total = self._count * FRAME + extra
        events: list[TurnEvent] = []
        begin = self._floor * FRAME
        if self._start is not None:
            stop = self._last + self._tail
            end = total if stop >= self._count else stop * FRAME
            events.append(self._close(self._start * FRAME, end, "end"))
            begin = end
        if begin < total:
            events.append(Silence(begin, total))
        self._floor = self._count
        self._first = None
        return events

    def _idle(self, frame: int) -> list[TurnEvent]:
        if self._speaking:
            if self._first is None:
                self._first, self._voiced = frame, 0
            self._voiced += 1
            self._last = self._count
            if self._voiced >= self._minimum:
                return self._begin(max(self._floor, self._first - self._pre_roll))
        elif self._first is not None and self._count - self._last >= self._tail:
            self._first = None  # a click, not a word
        until = self._count - self._pre_roll
        if self._first is None and until - self._floor >= self._report:
            return self._silence(until)
        return []

    def _open(self, start: int, energy: float) -> list[TurnEvent]:
        self._energies.append(energy)
        events: list[TurnEvent] = []
        quiet = self._count - self._last
        if self._speaking:
            self._last = self._count
            if self._paused:
                self._paused = False
                events.append(TurnResumed(self._id))
        elif quiet >= self._end:
            return [self._close(start * FRAME, (self._last + self._tail) * FRAME, "silence")]
        elif quiet >= self._tail and not self._paused:
            self._paused = True
            events.append(TurnPaused(self._id, start * FRAME, self._count * FRAME))
        if self._count - start < self._maximum:
            return events
        if not self._speaking:  # a pause is the quietest point
            stop = min(self._last + self._tail, self._count)
            return [*events, self._close(start * FRAME, stop * FRAME, "silence")]
        cut = self._quietest(start)
        return [*events, self._close(start * FRAME, cut * FRAME, "split"), *self._begin(cut)]

    def _begin(self, start: int) -> list[TurnEvent]:
        events = self._silence(start)
        self._id += 1
        self._start, self._first, self._paused = start, None, False
        self._energies = []
        return [*events, TurnOpened(self._id, start * FRAME)]

    def _silence(self, stop: int) -> list[TurnEvent]:
        begin, self._floor = self._floor, stop
        return [Silence(begin * FRAME, stop * FRAME)] if stop > begin else []

    def _close(self, start: int, stop: int, reason: Literal["silence", "split", "end"]) -> TurnClosed:
        self._start = None
        self._floor = -(-stop // FRAME)
        return TurnClosed(self._id, start, stop, min(self._last * FRAME, stop), reason)

    def _quietest(self, start: int) -> int:
        """A frame in the last third of the open utterance, before the current one: the quietest, of several the last."""
        window = min(len(self._energies) - 1, (self._count - start) // 3)
        energies = self._energies[-1 - window : -1]
        best = min(range(window), key=lambda i: (energies[i], -i))
        return self._count - 1 - window + best


def _frames(seconds: float) -> int:
    return max(1, round(seconds * SAMPLE_RATE / FRAME))
