"""A stop for loops: what sees that a decoder says the same over and over. Pure, and cheap per token."""

from __future__ import annotations

import re
import string

from prunella.device_runtime.transcript import DecodeOptions

_WORD = re.compile(r"\S+")

LONG_PHRASE = 8  # words; a phrase as long as this is a loop when it is said twice


class RepeatStop:
    """Sees, word by word, that a decoder says the same phrase over and over.

    As soon as the words so far end with a phrase of 1 to `max_words` words said `times` times in a row, `looped` is
    true and `text` holds one copy of it. A phrase too short for `min_words` must be said more often, and nobody says
    eight words or more twice in a row: there the second copy is enough. A word counts once the next one has begun (or `finish` was called), so that
    "no no nowhere" is no loop; case and punctuation around a word do not matter.

    Args:
        max_words: longest phrase that is seen. The work per word grows with it.
        times: how many copies of a shorter phrase make a loop; below 2 nothing is ever a loop.
        min_words: words that all copies together must have. "no no no" and "five five five" are ordinary speech.
    """

    def __init__(self, max_words: int = 48, times: int = 3, min_words: int = 6) -> None:
        self._times = times
        self._min_words = min_words
        self._max_words = max_words if times >= 2 else 0
        # matches[n]: for how many words in a row each has been equal to the word n places before it.
        self._matches = [0] * (self._max_words + 1)
        self._words: list[str] = []
        self._ends: list[int] = []
        self._text = ""
        self._decided = 0
        self.looped = False

    @classmethod
    def of(cls, options: DecodeOptions) -> RepeatStop:
        """One that these options ask for; it sees nothing where their guards are off."""
        times = options.repeat_times if options.guards else 0
        return cls(options.repeat_max_words, times, options.repeat_min_words)

    @property
    def text(self) -> str:
        """All text that was fed; after a loop, up to the end of its first copy."""
        return self._text

    def feed(self, piece: str) -> bool:
        """Append text → `looped`. Nothing is taken in after a loop."""
        if self.looped:
            return True
        self._text += piece
        return self._decide(final=False)

    def finish(self) -> bool:
        """The text is complete, and with it its last word → `looped`."""
        return self.looped or self._decide(final=True)

    def _decide(self, *, final: bool) -> bool:
        for word in _WORD.finditer(self._text, self._decided):
            if word.end() == len(self._text) and not final:
                break
            self._decided = word.end()
            if self._append(word.group(), word.end()):
                return True
        return False

    def _append(self, word: str, end: int) -> bool:
        spoken = word.strip(string.punctuation).casefold() or word
        self._words.append(spoken)
        self._ends.append(end)
        count = len(self._words)
        for size in range(1, min(self._max_words, count - 1) + 1):
            same = self._words[count - 1 - size] == spoken
            self._matches[size] = self._matches[size] + 1 if same else 0
            spare = size * (self._copies(size) - 1)
            if self._matches[size] >= spare:
                self._text = self._text[: self._ends[count - 1 - spare]]
                self.looped = True
                return True
        return False

    def _copies(self, size: int) -> int:
        """How often a phrase of `size` words must be said to be a loop."""
        if size >= LONG_PHRASE:
            return 2
        return max(self._times, -(-self._min_words // size))
