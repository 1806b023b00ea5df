"""Partial text that only grows: a word is shown once two guesses in a row agree on it and on all before it."""

from __future__ import annotations


class LocalAgreement:
    """The stable beginning of one utterance's guesses.

    A guess over the first seconds of an utterance often gets its last word wrong, and the next guess corrects it.
    What was once shown is never taken back here; only the final text may differ from it.
    """

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._before: list[str] | None = None

    @property
    def text(self) -> str:
        """The words shown so far."""
        return " ".join(self._shown)

    def update(self, guess: str) -> bool:
        """Take in the next guess at the whole utterance so far → whether `text` has grown."""
        words = guess.split()
        before, self._before = self._before, words
        if before is None:
            return False
        agreed = 0
        while agreed < min(len(words), len(before)) and words[agreed] == before[agreed]:
            agreed += 1
        known = len(self._shown)
        if agreed <= known or words[:known] != self._shown:
            return False
        self._shown = words[:agreed]
        return True
