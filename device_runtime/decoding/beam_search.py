"""Beam search over several transcripts at once, in which letters that a CTC head hears have a say.

A decoder that has heard little speech writes words that it knows ("buffoon" for "buffalo"), and one wrong word leads to the
next. Following the best few transcripts, each judged by the decoder and by how well its letters fit what a CTC head hears,
finds words that greedy decoding has passed (one-pass hybrid CTC/attention decoding, Watanabe et al. 2017, section IV-B).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.decoding.answer import AnswerReader
from prunella.device_runtime.decoding.ctc_rescorer import CtcPrefixRescorer, TokenSpeller
from prunella.device_runtime.decoding.engine import BeamEngine, Engine
from prunella.device_runtime.decoding.limits import PAYING_BEAMS, check_beams
from prunella.device_runtime.decoding.repeat_stop import RepeatStop
from prunella.device_runtime.decoding.strategy import Decoded, Prefilled
from prunella.device_runtime.decoding.template_text import strip_template
from prunella.device_runtime.decoding.top_tokens import log_totals, top_tokens
from prunella.device_runtime.transcript import DecodeOptions, FinishReason

# Nats for each letter where transcripts that go on are compared: who has spelled less of the audio has paid for less of it.
PER_LETTER = 0.8
WIDTH = 4.0  # nats of `rank` behind the first within which transcripts are followed
_SLACK = 1e-6  # nats: what rounds otherwise where it is reckoned from the other end
CANDIDATES = 32  # of a transcript's most likely next tokens; the search chooses among them


def beams_to_follow(engine: Engine, asked: int, usual: int) -> int:
    """How many transcripts an engine follows that is asked for so many.

    Args:
        engine: that is to follow them.
        asked: 1 is greedy; 0: as many as pay, where the model has a CTC head and the engine can, or `usual`.
        usual: what the bundle says.

    Raises:
        UsageError: fewer than 0, or more than any engine follows.
        EngineError: the engine cannot follow so many.
    """
    check_beams(asked)
    many = engine if isinstance(engine, BeamEngine) else None
    if asked == 0 and many is not None:
        asked = max(PAYING_BEAMS if many.has_ctc_head else 1, usual)
    beams = asked or 1
    most = many.most_beams if many is not None else 1
    if beams > (most or beams):
        follows = "one transcript at a time" if most == 1 else f"{most} transcripts at most, not {beams}"
        raise EngineError(f"{engine.name} follows {follows}: use --engine onnx, or fewer --beams")
    return beams


@dataclass(frozen=True)
class Hypothesis:
    """A transcript. `score`: log-probability by the decoder, plus what its letters are worth. `rank`: see `PER_LETTER`."""

    tokens: tuple[int, ...] = ()
    decoder_score: float = 0.0
    score: float = 0.0
    rank: float = 0.0


class _Candidate(NamedTuple):
    """A transcript and one more token. `score` and `rank` are the most that they can be; infinite rank: it ends there."""

    rank: float
    score: float
    parent: int
    token: int
    decoder_score: float
    reward: float


_rank = attrgetter("rank")


@dataclass
class BeamSearch:
    """The best transcripts so far. A pure state machine: `advance` takes the decoder's logits and says what to run next.

    Args:
        beams: transcripts that are followed.
        end: tokens that end one.
        rescorer: the letters of the utterance; none: the decoder alone judges.
        weight: of their log-probability; the decoder's has 1.
        width: nats of `Hypothesis.rank` within which of the best one others are followed.
    """

    beams: int
    end: Collection[int]
    rescorer: CtcPrefixRescorer | None = None
    weight: float = 0.0
    width: float = math.inf
    alive: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    ended: Hypothesis | None = None

    def advance(self, rows: Float32) -> tuple[list[int], list[int]]:
        """(len(alive), vocab) logits → the tokens and parents of the next pass; none: the search is over.

        Both log-probabilities only fall as a text grows, so an ended transcript that leads has won.
        """
        going: list[tuple[Hypothesis, int]] = []
        for candidate in self._candidates(rows):
            # What comes now is behind all that are followed.
            least = self._least(going)
            if candidate.rank <= least:
                break
            won = self.ended.score if self.ended is not None else -math.inf
            if candidate.score <= won:
                continue
            tokens = (*self.alive[candidate.parent].tokens, candidate.token)
            bound = max(won, least - candidate.reward)
            score = candidate.decoder_score + self._heard(tokens, bound - candidate.decoder_score)
            if not score > won:  # nor does it take the place of one that can still win
                continue
            longer = Hypothesis(tokens, candidate.decoder_score, score, score + candidate.reward)
            if candidate.token not in self.end:
                bisect.insort(going, (longer, candidate.parent), key=lambda pair: -pair[0].rank)
                del going[self.beams :]
            else:
                self.ended = longer
        least = going[0][0].rank - self.width if going else 0.0
        going = [pair for pair in going if pair[0].rank > least]
        self.alive = [longer for longer, _ in going]
        if self.rescorer is not None:
            self.rescorer.prune(hypothesis.tokens for hypothesis in self.alive)
        return [longer.tokens[-1] for longer, _ in going], [parent for _, parent in going]

    def _least(self, going: list[tuple[Hypothesis, int]]) -> float:
        """The rank above which one more transcript is followed."""
        if not going:
            return -math.inf
        last = going[-1][0].rank if len(going) == self.beams else -math.inf
        return max(last, going[0][0].rank - self.width)

    @property
    def best(self) -> Hypothesis:
        """The transcript that leads now."""
        known = [*self.alive[:1], *([self.ended] if self.ended is not None else [])]
        return max(known, key=lambda hypothesis: hypothesis.score, default=Hypothesis())

    @property
    def settled(self) -> tuple[int, ...]:
        """The tokens with which every transcript begins that can still win: none of them will be taken back."""
        known = [one.tokens for one in (*self.alive, self.ended) if one is not None]
        if not known:
            return ()
        both = zip(min(known), max(known), strict=False)  # what these two share, all between them do
        return tuple(first for first, last in itertools.takewhile(lambda pair: pair[0] == pair[1], both))

    def _candidates(self, rows: Float32) -> list[_Candidate]:
        """Every candidate, first those that end, then the best first.

        Letters cost time. What a text's first new letter makes of it says for which candidates the others need not be heard.
        """
        found: list[_Candidate] = []
        for parent, (hypothesis, row, total) in enumerate(
            zip(self.alive, rows, log_totals(rows), strict=True)
        ):
            heard = self._heard(hypothesis.tokens)
            likely = top_tokens(row, CANDIDATES)
            decoders = (hypothesis.decoder_score - total + row[likely].astype(np.float64)).tolist()
            for token, decoder in zip(likely.tolist(), decoders, strict=True):
                score, reward = decoder + heard, math.inf
                if token not in self.end:
                    letters, most = 0, 0.0
                    if self.rescorer is not None:
                        outlook = self.rescorer.outlook(hypothesis.tokens, token)
                        if outlook is None:
                            continue
                        letters, most = outlook
                    score, reward = decoder + self.weight * most, PER_LETTER * letters
                found.append(_Candidate(score + reward, score, parent, token, decoder, reward))
        return sorted(found, key=_rank, reverse=True)

    def _heard(self, tokens: tuple[int, ...], least: float = -math.inf) -> float:
        """What their letters are worth; minus infinity as soon as it is known to be less than `least`."""
        if self.rescorer is None:
            return 0.0
        bound = (least - _SLACK) / self.weight if self.weight else -math.inf
        return self.weight * self.rescorer.score(tokens, bound)


class Beams:
    """The best of several transcripts that are followed at once. A `Decoding`; it yields what all of them agree in.

    Args:
        engine: that has the utterance.
        tokenizer: the decoder's.
        end: tokens that end a transcript.
        alphabet: letters of the CTC head.
        options: how many transcripts, the weight of the letters, and the guards.
        reader: of the answers.
    """

    def __init__(
        self,
        engine: BeamEngine,
        tokenizer: Tokenizer,
        end: Collection[int],
        alphabet: str,
        options: DecodeOptions,
        reader: AnswerReader | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._end, self._options = engine, tokenizer, end, options
        self._reader = reader or AnswerReader()
        self._speller = TokenSpeller(alphabet, lambda token: tokenizer.decode([token]))

    def decode(self, utterance: Prefilled) -> Generator[str, None, Decoded]:
        """See `Decoding.decode`."""
        options, end = self._options, self._end
        rescorer = None
        if utterance.ctc_log_probs is not None and options.ctc_weight > 0:
            opening = None if self._reader.plain else self._opening
            rescorer = CtcPrefixRescorer(utterance.ctc_log_probs, self._speller, end, opening)
        alive = [Hypothesis(utterance.begun)]
        search = BeamSearch(options.beams, end, rescorer, options.ctc_weight, WIDTH, alive)
        passes = shown = 0
        pieces, agreed = DecodeStream(skip_special_tokens=True), ""
        tokens, parents = search.advance(utterance.logits[None])
        while tokens and passes < utterance.max_tokens - len(utterance.begun):
            passes += 1
            tokens, parents = search.advance(self._engine.step_beams(tokens, parents))
            fresh = [token for token in search.settled[shown:] if token not in end]
            shown += len(fresh)
            agreed += "".join(pieces.step(self._tokenizer, token) or "" for token in fresh)
            yield strip_template(self._reader.shown(agreed))
        return self._decoded(search.best.tokens, passes, utterance.max_tokens)

    def _opening(self, tokens: tuple[int, ...]) -> int:
        return self._reader.opening(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _decoded(self, best: tuple[int, ...], passes: int, max_tokens: int) -> Decoded:
        reason: FinishReason = "eos" if best and best[-1] in self._end else "length"
        tokens = tuple(token for token in best if token not in self._end)[:max_tokens]
        said = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        guard = RepeatStop.of(self._options)
        guard.feed(self._reader.whole(said))
        guard.finish()
        if guard.looped:
            reason = "repeat"
        elif self._reader.says_nobody_speaks(said):
            reason = "silence"
        text, language = strip_template(guard.text), self._reader.language(said)
        return Decoded(tokens, text, reason, passes, language=language)
