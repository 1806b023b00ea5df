"""Guesses of what a speech LLM will say, read off its audio embeddings, for `greedy.py` to verify in bulk.

A projector aligned with the decoder's token embeddings (CTC, `prunella heal --stage ctc` or `--ctc-weight`) puts the
audio near the tokens that were said: the nearest token of every audio position, repeats joined, is a rough transcript
for the price of one small matrix product. A projector that was never aligned gives no near tokens, hence no guesses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.blas import one_thread
from prunella.device_runtime.decoding.engine import Engine
from prunella.device_runtime.transcript import DecodeOptions

VOCABULARY = 8_192  # candidates; byte-pair tokens come in the order of their frequency, so the first are the likely ones
_SPOKEN = {"lower": re.compile(r" ?[a-z']+"), "as-is": re.compile(r" ?[A-Za-z']+[.,?!]?|[.,?!]")}
_MOST = 0.95  # nothing is surer than this
_LEAST = 0.25  # what is less likely is not even kept as a guess
_WORTH = 0.35  # a guess is verified where the whole chain up to it is at least so likely
_RETRY = 0.75  # a guess that was wrong for one token may be right for the next, but less likely
_FAILURES = 4  # after which it is given up
_LOOK_AHEAD = 5  # guesses among which the token that was really said is looked for
LONGEST_BELIEVED = 32  # tokens of one pass over what is believed to be right: each takes a row of logits
_LONGEST = 12  # guesses of one pass over the audio's draft


@dataclass(frozen=True)
class Guess:
    """A token, and how likely it is the next one (0 to 1)."""

    token: int
    likely: float


class Draft:
    """Guesses in order, and the place in them that the decoder has reached. A pure state machine.

    `propose()` gives the tokens worth verifying now; `accept(token)` moves on with each token that the decoder really said,
    guessed or not; `reject()` tells that the verified chain ended early, or was empty.
    """

    def __init__(
        self, guesses: Sequence[Guess], longest: int = _LONGEST, look_ahead: int = _LOOK_AHEAD
    ) -> None:
        self._guesses = guesses
        self._longest = longest
        self._look_ahead = look_ahead
        self._place = 0
        self._floor = 0  # guesses from here to the place were jumped over, perhaps wrongly
        self._failures = 0

    def propose(self) -> list[int]:
        """Tokens to verify in one pass; empty where none is likely enough."""
        chain: list[int] = []
        likely = _RETRY**self._failures
        for guess in self._guesses[self._place : self._place + self._longest]:
            likely *= guess.likely
            if likely < _WORTH:
                break
            chain.append(guess.token)
        return chain

    def accept(self, token: int) -> None:
        """The decoder said `token`: go on behind it, where it is among the next guesses, or those last jumped over."""
        ahead = range(self._place, min(self._place + self._look_ahead, len(self._guesses)))
        for place in (*ahead[:1], *range(self._floor, min(self._place, len(self._guesses))), *ahead[1:]):
            if self._guesses[place].token == token:
                # A word that comes twice makes a jump too far: until the next token agrees, the way back stays open.
                self._floor = self._place if place > self._place else place + 1
                self._place, self._failures = place + 1, 0
                return

    def reject(self) -> None:
        """The next guess was not what the decoder said."""
        self._failures += 1
        if self._failures >= _FAILURES:
            self._place, self._failures = self._place + 1, 0


def draft_of_tokens(tokens: Sequence[int]) -> Draft:
    """A draft of tokens believed to be right, such as an earlier transcript of most of the audio: few passes."""
    return Draft([Guess(int(token), 1.0) for token in tokens], longest=LONGEST_BELIEVED)


class AudioDrafter:
    """Reads drafts off audio embeddings.

    Args:
        ids: candidate tokens (`spoken_tokens`).
        rows: (len(ids), hidden) their embeddings.
        never, sure: cosines of a nearest token at which it is never, and as good as always, what was said. They depend on
            how the projector was trained: `research/reference_model/draft_cosines.py` measures them.
        blank: token that audio without a token of its own is nearest to (CTC's blank is close to it); -1: none.
    """

    def __init__(
        self,
        ids: Sequence[int],
        rows: Float32,
        never: float = 0.35,
        sure: float = 0.75,
        blank: int = -1,
    ) -> None:
        self._never, self._sure, self._blank = never, sure, blank
        self._ids = np.asarray(ids, np.int64)
        self._columns = np.ascontiguousarray(_unit(rows).T)

    def draft(self, audio_embeddings: Float32) -> Draft:
        """(audio_tokens, hidden) → a draft of what is said there."""
        with one_thread():
            near = _unit(audio_embeddings) @ self._columns
        best = near.argmax(axis=1)
        cosines = near[np.arange(len(best)), best]
        guesses: list[Guess] = []
        # CTC: the same token at neighbouring positions was said once.
        for run in np.split(np.arange(len(best)), np.flatnonzero(np.diff(best)) + 1):
            token = int(self._ids[best[run[0]]]) if len(run) else self._blank
            likely = self._likely(float(cosines[run].max(initial=0.0)))
            if token != self._blank and likely >= _LEAST:
                guesses.append(Guess(token, likely))
        return Draft(guesses)

    def _likely(self, cosine: float) -> float:
        return min(_MOST, (cosine - self._never) / (self._sure - self._never))


def spoken_tokens(tokenizer: Tokenizer, style: str, most: int = VOCABULARY) -> list[int]:
    """Ids of tokens that transcripts of a style (`PromptSpec.text_style`) are made of, the most frequent first."""
    spoken = _SPOKEN.get(style, _SPOKEN["as-is"])
    special = set(tokenizer.get_added_tokens_decoder())
    found: list[int] = []
    for token in range(tokenizer.get_vocab_size()):
        if token not in special and spoken.fullmatch(tokenizer.decode([token])):
            found.append(token)
            if len(found) == most:
                break
    return found


def _unit(rows: npt.NDArray[np.float32]) -> Float32:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float32 = (rows / np.maximum(norms, np.float32(1e-6))).astype(np.float32)
    return unit


def open_drafter(
    engine: Engine, tokenizer: Tokenizer, style: str, options: DecodeOptions
) -> AudioDrafter | None:
    """A drafter over the engine's own token embeddings; None where there are none, or none are wanted."""
    if not options.draft or engine.token_embeddings(()) is None:
        return None
    ids = spoken_tokens(tokenizer, style)
    rows = engine.token_embeddings(ids)
    if not ids or rows is None:
        return None
    return AudioDrafter(ids, rows, options.draft_never, options.draft_sure, options.draft_blank)
