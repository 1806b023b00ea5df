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
        # None: it has a letter that nobody can have heard.
        self._known: dict[tuple[int, ...], Prefix | None] = {(): self._scorer.empty()}
        # Of each of them: -1 within what stands before a transcript, 1 behind it, 0 where there was nothing of the kind.
        self._states: dict[tuple[int, ...], int] = {(): 1 if opening is None else -1}

    def score(self, tokens: tuple[int, ...], least: float = -math.inf) -> float:
        """Log-probability of the letters of these tokens, and of nothing behind them where an end token is the last.

        `least`: as soon as it is known to be no more than this, the answer is minus infinity.
        """
        if tokens and tokens[-1] in self._end:
            prefix = self._prefix(tokens[:-1])
            return -math.inf if prefix is None else self._scorer.log_probability_whole(prefix)
        prefix = self._prefix(tokens, least)
        return -math.inf if prefix is None else prefix.log_probability

    def outlook(self, tokens: tuple[int, ...], token: int) -> tuple[int, float] | None:
        """How many letters a transcript has with one more token, and the most that its `score` can then be; None: they
        cannot be spelled.

        What was said in place of what should stand before a transcript is no transcript: its letters are not rewarded.
        """
        prefix = self._prefix(tokens)
        state = self._states[tokens]
        if prefix is None:
            return None
        more = self._speller.spell(token, prefix.letters[-1] if prefix.letters else 0)
        if state < 0:
            unspelled = more is None and self._state((*tokens, token)) == 0
            return None if unspelled else (0, prefix.log_probability)
        if more is None:
            return None
        most = self._scorer.log_probability(prefix, more[0]) if more else prefix.log_probability
        return (len(prefix.letters) + len(more) if state else 0), most

    def prune(self, texts: Iterable[tuple[int, ...]]) -> None:
        """Forget what other texts are worth, which would fill the memory; it is found again when asked for."""
        kept = {tokens: self._prefix(tokens) for tokens in ((), *texts)}
        self._states = {tokens: self._states[tokens] for tokens in kept}
        # Texts of the same letters go on together.
        same: dict[tuple[int, ...], Prefix] = {}
        self._known = {
            tokens: prefix and same.setdefault(prefix.letters, prefix) for tokens, prefix in kept.items()
        }
        for prefix in same.values():
            prefix.forget()

    def _prefix(self, tokens: tuple[int, ...], least: float = -math.inf) -> Prefix | None:
        """Of their letters, known from then on; None too where it is less likely than `least`, which is not remembered."""
        if tokens in self._known:
            return self._known[tokens]
        prefix = self._prefix(tokens[:-1])
        state, unlikely = self._states[tokens[:-1]], False
        if state >= 0:
            prefix, unlikely = self._appended(prefix, tokens[-1], least)
        elif (state := self._state(tokens)) == 0:  # it was a transcript all along
            for token in tokens:
                prefix, _ = self._appended(prefix, token)
        if not unlikely:
            self._known[tokens], self._states[tokens] = prefix, state
        return prefix

    def _appended(
        self, prefix: Prefix | None, token: int, least: float = -math.inf
    ) -> tuple[Prefix | None, bool]:
        """What is spelled with one more token, or None; and whether that is for being no likelier than `least`."""
        if prefix is None:
            return None, False
        more = self._speller.spell(token, prefix.letters[-1] if prefix.letters else 0)
        if more is None:
            return None, False
        for letter in more:
            # Each letter costs time, and a longer text is never likelier.
            if prefix.log_probability <= least:
                return None, True
            prefix = self._scorer.extend(prefix, letter)
        return prefix, False

    def _state(self, tokens: tuple[int, ...]) -> int:
        opening = self._opening(tokens) if self._opening is not None else 0
        return (opening > 0) - (opening < 0)
