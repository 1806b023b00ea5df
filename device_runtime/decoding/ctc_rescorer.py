"""How tokens are spelled, and how well the transcripts of a beam search fit the letters that a CTC head hears."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.decoding.ctc_prefix import Prefix, PrefixScorer

_HALF = "\N{REPLACEMENT CHARACTER}"  # what some of the bytes of a character are decoded to


class TokenSpeller:
    """How tokens are spelled in the letters of a CTC head.

    Args:
        alphabet: the head's letters; class i + 1 is letter i.
        text_of: a token's text.
    """

    def __init__(self, alphabet: str, text_of: Callable[[int], str]) -> None:
        self._classes = {letter: place + 1 for place, letter in enumerate(alphabet)}
        self._space = self._classes.get(" ", -1)
        self._text_of = text_of
        self._known: dict[int, tuple[int, ...] | None] = {}

    def spell(self, token: int, last: int) -> tuple[int, ...] | None:
        """Classes of the letters of a token behind a text whose last letter is of class `last` (0: no text yet).

        Punctuation is left out, and a text neither begins with a space nor has two in a row. None: the token has a letter
        or a digit that is not in the alphabet, or is half of one; nobody can have heard it.
        """
        if token not in self._known:
            text = self._text_of(token).lower()
            foreign = any(
                letter not in self._classes and (letter.isalnum() or letter == _HALF) for letter in text
            )
            spelled = tuple(self._classes[letter] for letter in text if letter in self._classes)
            self._known[token] = None if foreign else spelled
        letters = self._known[token]
        if letters is None or letters[:1] != (self._space,) or last not in (0, self._space):
            return letters
        return letters[1:]


class CtcPrefixRescorer:
    """How well transcripts fit the letters that are heard in one utterance.

    Args:
        log_probabilities: (frames, 1 + letters) of the CTC head.
        speller: of the decoder's tokens.
        end: tokens that end a transcript.
        opening: of tokens, as `AnswerReader.opening` of their text: what stands before a transcript spells nothing.
            None: a transcript begins at once.
    """

    def __init__(
        self,
        log_probabilities: Float32,
        speller: TokenSpeller,
        end: Collection[int],
        opening: Callable[[tuple[int, ...]], int] | None = None,
    ) -> None:
        self._scorer = PrefixScorer(log_probabilities)
        self._speller, self._end, self._opening = speller, frozenset(end), opening
        self._known: dict[tuple[int, ...], Prefix] = {(): self._scorer.empty()}
        self._spelled: dict[tuple[int, ...], tuple[int, ...] | None] = {(): ()}
        # Of each of them: -1 within what stands before a transcript, 1 behind it, 0 where there was nothing of the kind.
        self._states: dict[tuple[int, ...], int] = {(): 1 if opening is None else -1}

    def score(self, tokens: tuple[int, ...]) -> float:
        """Log-probability of the letters of these tokens, and of nothing behind them where an end token is the last."""
        ended = bool(tokens) and tokens[-1] in self._end
        letters = self._letters(tokens[:-1] if ended else tokens)
        if letters is None:
            return -math.inf
        prefix = self._known[letters]
        return prefix.log_probability_whole if ended else prefix.log_probability

    def length(self, tokens: tuple[int, ...], token: int) -> int | None:
        """How many letters a transcript has with one more token; None: they cannot be spelled.

        What was said in place of what should stand before a transcript is no transcript: its letters are not rewarded.
        """
        letters = self._letters(tokens)
        state = self._states[tokens]
        if state < 0:
            state = self._state((*tokens, token))
            unspelled = state == 0 and self._speller.spell(token, letters[-1] if letters else 0) is None
            return None if unspelled else 0
        more = self._speller.spell(token, letters[-1] if letters else 0)
        if letters is None or more is None:
            return None
        return len(letters) + len(more) if state else 0

    def prune(self, texts: Iterable[tuple[int, ...]]) -> None:
        """Forget what other texts are worth, which would fill the memory; it is found again when asked for."""
        self._spelled = {tokens: self._letters(tokens) for tokens in ((), *texts)}
        self._states = {tokens: self._states[tokens] for tokens in self._spelled}
        self._known = {
            letters: self._known[letters] for letters in self._spelled.values() if letters is not None
        }

    def _letters(self, tokens: tuple[int, ...]) -> tuple[int, ...] | None:
        """Their letters, whose prefix is known from then on. Transcripts and candidates share beginnings."""
        if tokens not in self._spelled:
            letters = self._letters(tokens[:-1])
            state = self._states[tokens[:-1]]
            if state >= 0:
                letters = self._appended(letters, tokens[-1])
            elif (state := self._state(tokens)) == 0:  # it was a transcript all along
                for token in tokens:
                    letters = self._appended(letters, token)
            self._spelled[tokens], self._states[tokens] = letters, state
        return self._spelled[tokens]

    def _appended(self, letters: tuple[int, ...] | None, token: int) -> tuple[int, ...] | None:
        """What is spelled with one more token."""
        more = self._speller.spell(token, letters[-1] if letters else 0)
        if letters is None or more is None:
            return None
        for letter in more:
            longer = (*letters, letter)
            if longer not in self._known:
                self._known[longer] = self._scorer.extend(self._known[letters], letter)
            letters = longer
        return letters

    def _state(self, tokens: tuple[int, ...]) -> int:
        opening = self._opening(tokens) if self._opening is not None else 0
        return (opening > 0) - (opening < 0)
