"""Subtitles: an utterance's text as cues that can be read, of at most 7 s and two lines of 42 characters.

The model says no times of words. A cue ends at a pause where there is one in reach, and all else at even shares of the
letters over the time in which someone spoke.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_CUE = 7.0  # seconds
LINE = 42  # characters
_NEAR = 0.6  # seconds between where a word should end by its letters and the pause in which it does
_EARLIEST = 0.4  # of what a cue could hold; a pause before that is none to break at


@dataclass(frozen=True)
class Cue:
    """What stands on the screen from `t0` to `t1`, in seconds: one or two lines. `speaker`: who says it; "": not known."""

    t0: float
    t1: float
    lines: tuple[str, ...]
    speaker: str = ""


def cues(text: str, t0: float, t1: float, pauses: Sequence[tuple[float, float]] = ()) -> list[Cue]:
    """Break an utterance.

    Args:
        text: its words; one that is longer than a line is broken.
        t0, t1: seconds in which it was said, `t0 <= t1`.
        pauses: (begin, end) within them in which nobody spoke: in order, apart.

    Returns:
        In order, none overlapping another, all within [t0, t1] rounded to milliseconds; none for a text without words.
    """
    words = [word[at : at + LINE] for word in text.split() for at in range(0, len(word), LINE)]
    if not words:
        return []
    timed = _Timed(words, t0, t1, pauses)
    found = []
    begin = 0
    while begin < len(words):
        end = timed.end_of_cue(begin)
        found.append(timed.cue(begin, end))
        begin = end
    return found


def quiet_spans(
    probabilities: Sequence[float], t0: float, step: float, *, threshold: float = 0.35, shortest: float = 0.16
) -> tuple[tuple[float, float], ...]:
    """Where a speech detector heard nobody.

    Args:
        probabilities: of speech, one a frame; the first frame begins at `t0` seconds.
        step: seconds of a frame.
        threshold: below which a frame is quiet.
        shortest: seconds of a pause.
    """
    spans = []
    at = 0
    for quiet, group in itertools.groupby(probabilities, lambda value: value < threshold):
        count = len(list(group))
        if quiet and count * step >= shortest:
            spans.append((t0 + at * step, t0 + (at + count) * step))
        at += count
    return tuple(spans)


class _Timed:
    """Words with the times at which each begins and ends."""

    def __init__(self, words: list[str], t0: float, t1: float, pauses: Sequence[tuple[float, float]]) -> None:
        self.words = words
        self.t0, self.t1 = t0, t1
        spans, inner = _speech(t0, t1, pauses)
        self._letters = list(itertools.accumulate((len(word) + 1 for word in words), initial=0))
        spoken = list(itertools.accumulate((stop - start for start, stop in spans), initial=0.0))
        at = [letters / self._letters[-1] * spoken[-1] for letters in self._letters]
        self.pause = [0.0] * (len(words) + 1)  # seconds of quiet before a word
        anchors = {0: 0, len(words): len(spans)}  # a word's number, and the span that begins with it
        for number, (start, stop) in enumerate(inner, start=1):
            word = min(range(len(at)), key=lambda i: abs(at[i] - spoken[number]))
            near = 0 < word < len(words) and abs(at[word] - spoken[number]) <= _NEAR
            if near and stop - start > self.pause[word]:
                anchors[word] = number
                self.pause[word] = stop - start
        self.starts, self.ends = [0.0] * len(words), [0.0] * len(words)
        for (first, left), (last, right) in itertools.pairwise(sorted(anchors.items())):
            share = (spoken[right] - spoken[left]) / (self._letters[last] - self._letters[first])
            for word in range(first, last):
                begun = spoken[left] + share * (self._letters[word] - self._letters[first])
                ended = spoken[left] + share * (self._letters[word + 1] - self._letters[first])
                self.starts[word] = _when(begun, spans, spoken)
                self.ends[word] = _when(ended, spans, spoken)
            self.starts[first], self.ends[last - 1] = spans[left][0], spans[right - 1][1]

    def end_of_cue(self, begin: int) -> int:
        """The number of the word before which the cue that begins with a word should end."""
        reach = begin + 1
        while (
            reach < len(self.words)
            and _lines(self.words[begin : reach + 1]) is not None
            and self.ends[reach] - self.starts[begin] <= LONGEST_CUE
        ):
            reach += 1
        if reach == len(self.words):
            return reach
        held = self._letters[reach] - self._letters[begin]
        late = [
            word
            for word in range(begin + 1, reach + 1)
            if self.pause[word] and self._letters[word] - self._letters[begin] >= _EARLIEST * held
        ]
        if late:
            return max(late, key=lambda word: self.pause[word])
        # No pause: as many even parts as the words up to the next one need.
        after = next(
            (word for word in range(reach + 1, len(self.words)) if self.pause[word]), len(self.words)
        )
        rest = self._letters[after] - self._letters[begin]
        part = rest / -(-rest // held)
        return min(
            range(begin + 1, reach + 1),
            key=lambda word: abs(self._letters[word] - self._letters[begin] - part),
        )

    def cue(self, begin: int, end: int) -> Cue:
        lines = _lines(self.words[begin:end])
        assert lines is not None
        start, stop = self.starts[begin], self.ends[end - 1]
        if end == len(self.words):  # the quiet that an utterance keeps around it
            stop = self.t1
        stop = min(stop, start + LONGEST_CUE)
        if begin == 0:
            start = max(self.t0, stop - LONGEST_CUE)
        first = round(start * 1000)
        last = max(first, min(round(stop * 1000), first + round(LONGEST_CUE * 1000)))
        return Cue(first / 1000, last / 1000, lines)


def _speech(
    t0: float, t1: float, pauses: Sequence[tuple[float, float]]
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """When someone spoke, and the pauses between."""
    spans, inner = [], []
    at = t0
    for start, stop in pauses:
        start, stop = max(start, at), min(stop, t1)
        if stop <= start:
            continue
        if start > at:
            spans.append((at, start))
            inner.append((start, stop))
        at = stop
    if at < t1:
        spans.append((at, t1))
    elif inner:
        inner.pop()  # quiet to the end
    return (spans, inner) if spans else ([(t0, t1)], [])


def _when(spoken: float, spans: list[tuple[float, float]], until: list[float]) -> float:
    """The time at which so many seconds were spoken."""
    number = min(max(bisect.bisect_left(until, spoken) - 1, 0), len(spans) - 1)
    start, stop = spans[number]
    return min(start + spoken - until[number], stop)


def _lines(words: list[str]) -> tuple[str, ...] | None:
    """One or two lines, of even length; None where they do not fit."""
    whole = " ".join(words)
    if len(whole) <= LINE:
        return (whole,)
    best: tuple[str, ...] | None = None
    for at in range(1, len(words)):
        pair = (" ".join(words[:at]), " ".join(words[at:]))
        if max(map(len, pair)) <= LINE and (best is None or max(map(len, pair)) < max(map(len, best))):
            best = pair
    return best
