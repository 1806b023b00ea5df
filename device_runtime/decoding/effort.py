"""Less of the decoder where the letters are sure (CTC drafts, arXiv 2603.11243).

A CTC head has spelled the utterance before the decoder says a word. Where every one of its frames is sure, its text is the
answer, and the decoder never runs. Else the decoder reads the text in one pass: what is not much less likely than what it
would have said itself is kept, up to the first token that is, and it goes on from there. How sure, and how much less likely,
are the model's own (`DecodeOptions`), chosen on speech (`research/effort/`).
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from tokenizers import Tokenizer

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import EngineError, UsageError
from prunella.device_runtime.bundle import PromptSpec
from prunella.device_runtime.decoding.answer import AnswerReader
from prunella.device_runtime.decoding.ctc_prefix import BLANK
from prunella.device_runtime.decoding.engine import Engine
from prunella.device_runtime.decoding.repeat_stop import RepeatStop
from prunella.device_runtime.decoding.strategy import Decoded, Decoding, Prefilled
from prunella.device_runtime.decoding.template_text import strip_template
from prunella.device_runtime.transcript import DecodeOptions


def check_shortcut(engine: Engine, prompt: PromptSpec, effort: str) -> None:
    """Refuse less than "exact" where letters cannot stand for the model's text.

    Raises:
        EngineError: the model has no CTC head, or this engine does not hear it.
        UsageError: the model writes what letters do not say, or says something before its transcripts.
    """
    if effort == "exact":
        return
    if not getattr(engine, "has_ctc_head", False):
        raise EngineError(
            f"the effort '{effort}' reads the letters of a CTC head, and {engine.name} has none: train one with `prunella heal MODEL "
            "--stage ctc-head --speech MANIFEST -o MODEL2` and export it again, or take --effort exact (libmtmd never has one: "
            "--engine gguf)"
        )
    if prompt.text_style != "lower" or not AnswerReader.of(prompt).plain:
        raise UsageError(
            f"the effort '{effort}' takes letters for text, and this model writes capitals, punctuation or a language that they "
            "do not say: take --effort exact"
        )


@dataclass(frozen=True)
class Spelled:
    """What a CTC head heard.

    Attributes:
        text: the likeliest letters, repeats joined.
        tokens: of the decoder, for this text.
        entropy: nats, of the frame that is least sure.
    """

    text: str
    tokens: tuple[int, ...]
    entropy: float


@dataclass(frozen=True)
class Letters:
    """Reads texts off a CTC head.

    Attributes:
        alphabet: of the head; class i + 1 is letter i.
        tokenizer: of the decoder.
    """

    alphabet: str
    tokenizer: Tokenizer

    def read(self, log_probabilities: Float32) -> Spelled:
        """(frames, 1 + letters) → what is spelled there."""
        if not len(log_probabilities):
            return Spelled("", (), 0.0)
        entropy = -(np.exp(log_probabilities) * log_probabilities).sum(axis=1, dtype=np.float64)
        kinds = [kind for kind, _ in groupby(log_probabilities.argmax(axis=1).tolist()) if kind != BLANK]
        text = " ".join("".join(self.alphabet[kind - 1] for kind in kinds).split())
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=False).ids) if text else ()
        return Spelled(text, tokens, float(entropy.max()))


class Shortcut:
    """A `Decoding` that begins with what the letters say.

    Args:
        engine: that has the utterance.
        letters: of its CTC head.
        end: tokens that end a transcript.
        options: with an effort below "exact".
        inner: how the decoder goes on where the letters were wrong.
    """

    def __init__(
        self,
        engine: Engine,
        letters: Letters,
        end: Collection[int],
        options: DecodeOptions,
        inner: Decoding,
    ) -> None:
        self._engine, self._letters, self._end, self._options = engine, letters, list(end), options
        self._inner = inner
        self._entropy, self._margin = options.shortcut

    def sure(self, log_probabilities: Float32 | None, max_tokens: int) -> Decoded | None:
        """What was said, where every frame is sure of it; None: the decoder has to run."""
        if log_probabilities is None:
            return None
        heard = self._letters.read(log_probabilities)
        if heard.entropy > self._entropy or not 0 < len(heard.tokens) <= max_tokens:
            return None
        return self._decoded(heard, passes=0)

    def decode(self, utterance: Prefilled) -> Generator[str, None, Decoded]:
        """See `Decoding.decode`."""
        letters = utterance.ctc_log_probs
        heard = self._letters.read(letters) if letters is not None else Spelled("", (), 0.0)
        tokens = heard.tokens
        # The answer of the model's own length: its end is said too.
        if not 0 < len(tokens) < utterance.max_tokens:
            return (yield from self._inner.decode(utterance))
        first = utterance.logits.copy()
        rows = self._engine.extend(tokens)
        losses = deficits(first, rows, tokens, self._end)
        kept = next((place for place, loss in enumerate(losses) if loss > self._margin), len(losses))
        if kept > len(tokens):
            decoded = self._decoded(heard, passes=1)
            yield decoded.text
            return decoded
        logits = rows[kept - 1].copy() if kept else first
        self._engine.rewind(len(tokens) - kept)
        begun = replace(utterance, logits=logits, begun=tokens[:kept], draft=() if kept else utterance.draft)
        decoded = yield from self._inner.decode(begun)
        return replace(decoded, passes=decoded.passes + 1)

    def _decoded(self, heard: Spelled, passes: int) -> Decoded:
        guard = RepeatStop.of(self._options)
        guard.feed(heard.text)
        guard.finish()
        text = strip_template(guard.text)
        return Decoded(heard.tokens, text, "repeat" if guard.looped else "eos", passes)


def deficits(first: Float32, rows: Float32, tokens: tuple[int, ...], end: list[int]) -> list[float]:
    """How many nats less likely than the decoder's own choice each token is, and behind the last the end of the text.

    Args:
        first: (vocab,) logits of the first token.
        rows: (len(tokens), vocab) logits behind each token.
        tokens: of the text.
        end: tokens that end one; the likeliest counts.
    """
    before = [first, *rows[:-1]]
    losses = [float(row.max() - row[token]) for row, token in zip(before, tokens, strict=True)]
    return [*losses, float(rows[-1].max() - rows[-1][end].max())]
