"""Greedy decoding that verifies guessed tokens several at a time: the same tokens in fewer passes over the weights.

On a device a pass costs the reading of the weights, nearly the same for one token as for six. So the likely next tokens
(`draft.py`) are appended together, and as many as the decoder itself would have said are kept (speculative decoding,
Leviathan et al. 2023, arXiv 2211.17192, with greedy acceptance). In float the tokens are those of plain decoding; where
activations are rounded to 8 bits a pass over several tokens rounds differently, and a near tie may fall the other way.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunella.device_runtime.draft import Draft
from prunella.device_runtime.engine import Engine, Float32


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
                following = rows.argmax(axis=1)
                while kept < len(chain) and following[kept] == chain[kept]:
                    kept += 1
                self._engine.rewind(len(chain) - kept)
                for guess in chain[:kept]:
                    self._draft.said(guess)
                    yield guess
                left -= kept
                token = int(following[kept])
            else:
                token = int(np.argmax(self._engine.step(token)))
            if not kept == len(chain) > 0:
                self._draft.missed()
            self._draft.said(token)
