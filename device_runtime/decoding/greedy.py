"""Greedy decoding that verifies guessed tokens several at a time: the same tokens in fewer passes over the weights.

On a device a pass costs the reading of the weights, nearly the same for one token as for six. So the likely next tokens
(`draft.py`) are appended together, and as many as the decoder itself would have said are kept (speculative decoding,
Leviathan et al. 2023, arXiv 2211.17192, with greedy acceptance). The tokens are those of plain decoding: where activations
are rounded to 8 bits, a pass over several tokens rounds differently from a pass over one, so what it decides by less than
`Engine.near_tie_margin` is decided again by plain steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Generator, Iterator

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.decoding.answer import AnswerReader, AnswerStream
from prunella.device_runtime.decoding.draft import AudioDrafter, Draft, draft_of_tokens
from prunella.device_runtime.decoding.engine import Engine
from prunella.device_runtime.decoding.repeat_stop import RepeatStop
from prunella.device_runtime.decoding.strategy import Decoded, Prefilled
from prunella.device_runtime.decoding.template_text import strip_template
from prunella.device_runtime.transcript import DecodeOptions, FinishReason


class GreedyDecoder:
    """Tokens of one utterance, most likely first, one by one; the engine runs ahead by the draft's guesses.

    Args:
        engine: after `start`.
        logits: (vocab,) what `start` gave.
        draft: guesses; none: a pass for every token.

    Attributes:
        passes: the engine's forward passes so far.
        draft: what is guessed of the tokens that come next; another may take its place between two tokens.
    """

    def __init__(self, engine: Engine, logits: Float32, draft: Draft | None = None) -> None:
        self._engine, self._logits, self.draft = engine, logits, draft or Draft(())
        # The cache's last tokens, from the first that a pass over several appended.
        self._loose: list[int] = []
        self.passes = 0

    def tokens(self, most: int) -> Iterator[int]:
        """Up to `most` tokens; the consumer stops earlier at an end token or a loop. A pass is made only for the next."""
        token = int(np.argmax(self._logits))
        self.draft.accept(token)
        left = most
        while left > 0:
            yield token
            left -= 1
            if not left:
                return
            chain = self.draft.propose()[: left - 1]
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
                    self.draft.accept(guess)
                    yield guess
                left -= kept
            else:
                row = self._engine.step(token)
                if self._loose:
                    self._loose.append(token)
            token = self._decide(row)
            if not chain or (kept < len(chain) and token != chain[kept]):
                self.draft.reject()
            self.draft.accept(token)

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


class Greedy:
    """The most likely token each time, until an end token, a loop or the cap. A `Decoding`.

    Args:
        engine: that has the utterance.
        tokenizer: the decoder's.
        end: tokens that end a transcript.
        options: the guards, and whether drafts are read off the audio.
        drafter: what reads them off; none: only a draft that comes with the utterance is verified.
        reader: of the answers.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        end: Collection[int],
        options: DecodeOptions,
        drafter: AudioDrafter | None = None,
        reader: AnswerReader | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._end, self._options = engine, tokenizer, end, options
        self._reader = reader or AnswerReader()
        self._drafter = drafter if options.draft else None

    def decode(self, utterance: Prefilled) -> Generator[str, None, Decoded]:
        """See `Decoding.decode`."""
        guard = RepeatStop.of(self._options)
        answer = AnswerStream(self._reader)
        pieces = DecodeStream(skip_special_tokens=True)
        tokens: list[int] = []
        reason: FinishReason = "length"
        # What is read off the audio begins behind what an answer says first; what was said before has that too.
        waits = not utterance.draft and not answer.opened
        draft = None if waits else self._draft(utterance)
        if draft is not None:
            for token in utterance.begun:
                draft.accept(token)
        decoder = GreedyDecoder(self._engine, utterance.logits, draft)
        left = utterance.max_tokens - len(utterance.begun)
        for token in itertools.chain(utterance.begun, decoder.tokens(left)):
            if token in self._end:
                reason = "eos"
                break
            tokens.append(token)
            piece = pieces.step(self._tokenizer, token)
            if piece:
                fresh = answer.feed(piece)
                if waits and answer.opened:
                    waits, decoder.draft = False, self._draft(utterance) or Draft(())
                if guard.feed(fresh):
                    break
                if self._options.guards and answer.stuck:
                    reason = "repeat"
                    break
                yield strip_template(guard.text)
        if not guard.looped:
            # The stream holds back the bytes of an unfinished character; the whole text shows them.
            whole = self._tokenizer.decode(tokens, skip_special_tokens=True)
            guard.feed(answer.finish(whole))
            guard.finish()
        if guard.looped:
            reason = "repeat"
        elif self._reader.says_nobody_speaks(answer.said):
            reason = "silence"
        text, language = strip_template(guard.text), self._reader.language(answer.said)
        return Decoded(tuple(tokens), text, reason, decoder.passes, language=language)

    def _draft(self, utterance: Prefilled) -> Draft | None:
        """What to verify while decoding: the caller's tokens, else what the audio embeddings are near to."""
        if utterance.draft:
            return draft_of_tokens(utterance.draft)
        return self._drafter.draft(utterance.embeddings) if self._drafter else None
