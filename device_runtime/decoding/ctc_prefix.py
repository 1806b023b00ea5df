"""How well the beginning of a text fits the letters that are heard: CTC prefix probabilities.

A CTC head on the audio encoder (`speech_llm/ctc_head.py`) says for every frame which letter is spoken there, or none. The
probability that the whole audio begins with some text, whatever follows, is what hybrid CTC/attention decoding weighs
against the decoder's own (Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition",
section IV-B).

A text ends somewhere in the audio, within some dozens of frames: those behind which it is less likely than `_LEAST` of the
likeliest are left out, far below the precision of a float. Over so few, plain floats are faster than arrays are. A search
asks for many letters behind a prefix and follows few of them, so a prefix finds its frames when it is first followed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import mul

import numpy as np
import numpy.typing as npt

BLANK = 0  # class of a frame that begins no letter; letter i of the alphabet is class i + 1
_LEAST = math.exp(-100)
_TINY, _HUGE = 1e-200, 1e200  # keeps long silences within a float's range


@dataclass
class _Frames:
    """Where in the audio a text may end. All but `log_scale` are probabilities divided by its exponential.

    Attributes:
        start: number of frames that the first of the likely places has before it.
        spelled: that the frames before each of them spell the text.
        blank: that they do and end in a blank.
        reach: number of frames that the last place looked at has before it: the audio's, or those behind which nothing matters.
        letter_there, blank_there: that the frames before it spell the text, ending in its last letter or in a blank.
    """

    start: int
    spelled: list[float]
    blank: list[float]
    log_scale: float
    reach: int
    letter_there: float
    blank_there: float


@dataclass(eq=False)
class Prefix:
    """The beginning of a text. Made by a `PrefixScorer`.

    Attributes:
        letters: classes of its letters, in order.
        log_probability: of all texts that begin with it.
    """

    letters: tuple[int, ...]
    log_probability: float
    parent: Prefix | None = None  # until its frames are known
    frames: _Frames | None = None
    following: dict[int, float] = field(default_factory=dict)
    longer: dict[int, Prefix] = field(default_factory=dict)

    def forget(self) -> None:
        """Let go of the longer prefixes, which would fill the memory; they are found again when asked for."""
        self.longer.clear()


class PrefixScorer:
    """Prefix probabilities over one piece of audio.

    Args:
        log_probabilities: (frames, 1 + letters) of every class in every frame.
    """

    def __init__(self, log_probabilities: npt.NDArray[np.floating]) -> None:
        self._count = len(log_probabilities)
        self._each: list[list[float]] = np.exp(log_probabilities.T.astype(np.float64)).tolist()

    def empty(self) -> Prefix:
        """What every text begins with."""
        spelled = [1.0]
        for blank in self._each[BLANK]:
            spelled.append(spelled[-1] * blank)
            if spelled[-1] < _LEAST:
                break
        frames = _Frames(0, spelled, spelled, 0.0, len(spelled) - 1, 0.0, spelled[-1])
        return Prefix((), 0.0, frames=frames)

    def log_probability(self, prefix: Prefix, letter: int) -> float:
        """Of all texts that begin with the prefix and one more letter, given as its class."""
        found = prefix.following.get(letter)
        if found is None:
            frames, before = self._before(prefix, letter)
            spoken = self._each[letter][frames.start : frames.start + len(before)]
            total = sum(map(mul, before, spoken))
            found = math.log(total) + frames.log_scale if total > 0 else -math.inf
            prefix.following[letter] = found
        return found

    def extend(self, prefix: Prefix, letter: int) -> Prefix:
        """The prefix and one more letter, given as its class."""
        longer = prefix.longer.get(letter)
        if longer is None:
            longer = Prefix((*prefix.letters, letter), self.log_probability(prefix, letter), prefix)
            prefix.longer[letter] = longer
        return longer

    def log_probability_whole(self, prefix: Prefix) -> float:
        """Log-probability of this text and nothing behind it."""
        frames = self._frames(prefix)
        letter, blank, scale = frames.letter_there, frames.blank_there, frames.log_scale
        held = self._each[prefix.letters[-1]] if prefix.letters else self._each[BLANK]
        blanks = self._each[BLANK]
        for place in range(frames.reach, self._count):
            blank = blanks[place] * (blank + letter)
            letter *= held[place]
            if blank + letter < _TINY:
                letter, blank, scale = letter * _HUGE, blank * _HUGE, scale - math.log(_HUGE)
        total = letter + blank
        return math.log(total) + scale if total > 0 else -math.inf

    def _before(self, prefix: Prefix, letter: int) -> tuple[_Frames, list[float]]:
        """The places behind which a letter can begin: of the same letter again, those with a blank between."""
        frames = self._frames(prefix)
        held = prefix.letters[-1:] == (letter,)
        return frames, frames.blank if held else frames.spelled

    def _frames(self, prefix: Prefix) -> _Frames:
        if prefix.frames is None:
            assert prefix.parent is not None
            prefix.frames = self._extended(prefix.parent, prefix.letters[-1])
            prefix.parent = None
        return prefix.frames

    def _extended(self, prefix: Prefix, letter: int) -> _Frames:
        """x(t) = p(t) * (x(t - 1) + before(t - 1)): of frames that end in the letter, then of those in a blank."""
        frames, before = self._before(prefix, letter)
        spoken, blanks = self._each[letter], self._each[BLANK]
        place = frames.start
        held = blank = 0.0
        spelled, in_blanks = [], []
        stop = place + len(before)
        for ahead, now, none in zip(before, spoken[place:stop], blanks[place:stop], strict=False):
            blank = none * (blank + held)
            held = now * (held + ahead)
            in_blanks.append(blank)
            spelled.append(held + blank)
        largest = max(spelled, default=0.0)
        if largest == 0.0:
            return _Frames(min(place, self._count), [], [], 0.0, self._count, 0.0, 0.0)
        least = largest * _LEAST
        reach = place + len(spelled)
        while reach < self._count and held + blank >= least:
            blank = blanks[reach] * (blank + held)
            held *= spoken[reach]
            in_blanks.append(blank)
            spelled.append(held + blank)
            reach += 1
        first, last = 0, len(spelled)
        while spelled[first] < least:
            first += 1
        while spelled[last - 1] < least:
            last -= 1
        factor = 1 / largest
        return _Frames(
            place + 1 + first,
            [one * factor for one in spelled[first:last]],
            [one * factor for one in in_blanks[first:last]],
            frames.log_scale + math.log(largest),
            reach,
            held * factor,
            blank * factor,
        )
