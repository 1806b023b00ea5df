"""Greedy decoding that verifies guessed tokens several at a time: the same tokens in fewer passes over the weights.

On a device a pass costs the reading of the weights, nearly the same for one token as for six. So the likely next tokens
(`draft.py`) are appended together, and as many as the decoder itself would have said are kept (speculative decoding,
Leviathan et al. 2023, arXiv 2211.17192, with greedy acceptance). The tokens are those of plain decoding: where activations
are rounded to 8 bits, a pass over several tokens rounds differently from a pass over one, so what it decides by less than
`Engine.near_tie_margin` is decided again by plain steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.decoding.draft import Draft
from prunella.device_runtime.decoding.engine import Engine


class GreedyDecoder:
    """Tokens of one utterance, most likely first, one by one; the engine runs ahead by the draft's guesses.

    Args:
        engine: after `start`.
        logits: (vocab,) what `start` gave.
        draft: guesses; none: a pass for every token.

    `passes` counts the engine's forward passes so far.
    """

    def __init__(self, engine: Engine, logits: Float32, draft: Draft | None = None) -> None:
        self._engine, self._logits, self._draft = engine, logits, draft or Draft(())
        # The cache's last tokens, from the first that a pass over several appended.
        self._loose: list[int] = []
        self.passes = 0

    def tokens(self, most: int) -> Iterator[int]:
        """Up to `most` tokens; the consumer stops earlier at an end token or a loop. A pass is made only for the next."""
        token = int(np.argmax(self._logits))
        self._draft.said(token)
        left = most
        while left > 0:
            yield token
            left -= 1
            if not left:
                return
            chain = self._draft.next()[: left - 1]
            kept = 0
            self.passes += 1
            if chain:
                rows = self._engine.extend([token, *chain])
                while kept < len(chain) and self._is_sure(rows[kept], chain[kept]):
                    kept += 1
                row = rows[kept].copy()
                self._engine.rewind(len(chain) - kept)
                self._loose += [token, *chain[:kept]]
                for guess in chain[:kept]:
                    self._draft.said(guess)
                    yield guess
                left -= kept
            else:
                row = self._engine.step(token)
                if self._loose:
                    self._loose.append(token)
            token = self._decide(row)
            if not chain or (kept < len(chain) and token != chain[kept]):
                self._draft.missed()
            self._draft.said(token)

    def _is_sure(self, row: Float32, token: int) -> bool:
        """Whether plain decoding says `token` too."""
        return int(np.argmax(row)) == token and not self._is_tie(row)

    def _is_tie(self, row: Float32) -> bool:
        tie = self._engine.near_tie_margin
        return tie > 0 and int(np.count_nonzero(row > row.max() - tie)) > 1

    def _decide(self, row: Float32) -> int:
        """The next token: by plain decoding from the last place that had it, where passes over several cannot tell."""
        if self._loose and self._is_tie(row):
            self._engine.rewind(len(self._loose))
            for token in self._loose:
                row = self._engine.step(token)
            self.passes += len(self._loose)
            self._loose.clear()
        return int(np.argmax(row))
