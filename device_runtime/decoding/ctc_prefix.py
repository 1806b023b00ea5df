"""How well the beginning of a text fits the letters that are heard: CTC prefix probabilities.

A CTC head on the audio encoder (`speech_llm/ctc_head.py`) says for every frame which letter is spoken there, or none. The
probability that the whole audio begins with some text, whatever follows, is what hybrid CTC/attention decoding weighs
against the decoder's own (Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition",
section IV-B).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
BLANK = 0  # class of a frame that begins no letter; letter i of the alphabet is class i + 1


@dataclass(frozen=True)
class Prefix:
    """The beginning of a text.

    Attributes:
        letter, blank: (frames + 1,) log-probabilities that the first t frames spell it, ending in its last letter or in blanks.
        last: class of its last letter; BLANK where it is empty.
        log_probability: of all texts that begin with it.
    """

    letter: Float64
    blank: Float64
    last: int
    log_probability: float

    @property
    def log_probability_whole(self) -> float:
        """Log-probability of this text and nothing behind it."""
        return float(np.logaddexp(self.letter[-1], self.blank[-1]))


class PrefixScorer:
    """Prefix probabilities over one piece of audio.

    Args:
        log_probabilities: (frames, 1 + letters) of every class in every frame.
    """

    def __init__(self, log_probabilities: npt.NDArray[np.floating]) -> None:
        frames, classes = log_probabilities.shape
        # Class by class: a recurrence runs along the frames of one class.
        self._each = np.ascontiguousarray(log_probabilities.T, np.float64)
        self._sums = np.zeros((classes, frames + 1))
        np.cumsum(self._each, axis=1, out=self._sums[:, 1:])

    def empty(self) -> Prefix:
        """What every text begins with."""
        blank = self._sums[BLANK]
        return Prefix(np.full_like(blank, -np.inf), blank, BLANK, 0.0)

    def extend(self, prefix: Prefix, letter: int) -> Prefix:
        """The prefix and one more letter, given as its class."""
        # A letter twice in a row needs a blank between: otherwise it is the same one, held.
        before = prefix.blank if letter == prefix.last else np.logaddexp(prefix.letter, prefix.blank)
        ends_in_letter = self._held(letter, before)
        return Prefix(
            letter=ends_in_letter,
            blank=self._held(BLANK, ends_in_letter),
            last=letter,
            log_probability=float(np.logaddexp.reduce(before[:-1] + self._each[letter], initial=-np.inf)),
        )

    def _held(self, kind: int, before: Float64) -> Float64:
        """x(t) = p(t) * (x(t - 1) + before(t - 1)) in logarithms, as one running sum instead of a loop over frames."""
        sums = self._sums[kind]
        held: Float64 = np.full_like(sums, -np.inf)
        np.logaddexp.accumulate(before[:-1] - sums[:-1], out=held[1:])
        held[1:] += sums[1:]
        return held
