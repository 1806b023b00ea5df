"""What every way of choosing an utterance's tokens offers: `Greedy`, `Beams`, `Phrases`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.transcript import FinishReason, PhraseMatch


@dataclass(frozen=True)
class Prefilled:
    """An utterance that an engine has taken in: it stands behind `start`.

    Attributes:
        embeddings: (audio_tokens, hidden) float32 of its audio.
        logits: (vocab,) float32 of the first token; valid until the engine runs again.
        ctc_log_probs: (frames, 1 + letters) float32 of a CTC head; None: there is no head.
        max_tokens: that its text may have.
        draft: tokens believed to be said.
        begun: tokens of the text that the engine has taken in behind `start`; `logits` follow them.
    """

    embeddings: Float32
    logits: Float32
    ctc_log_probs: Float32 | None
    max_tokens: int
    draft: Sequence[int] = ()
    begun: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """What was said. `tokens`: without the end token; `passes`: of the decoder behind the prefill; `language`: its code, if
    the answer or the prompt named one."""

    tokens: tuple[int, ...]
    text: str
    reason: FinishReason
    passes: int
    phrase: PhraseMatch | None = None
    language: str | None = None


class Decoding(Protocol):
    """One way of choosing tokens, over one engine."""

    def decode(self, utterance: Prefilled) -> Generator[str, None, Decoded]:
        """Yield the text so far after each pass that changes it; the value is the whole."""
        ...
