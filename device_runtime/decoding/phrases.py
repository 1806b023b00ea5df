"""Decoding that can only say what is on a list: a trie of tokens, an exact search over it, a score, and a refusal.

The probability of a whole phrase, end included, is compared over all phrases, never token by token: a word that begins
well is no reason to end in a phrase that was not said. A phrase is refused where the model itself finds it unlikely.
The score is the geometric mean of the phrase's token probabilities: it needs no second, free decode to compare with. What
it gives in use: `research/phrases/measure.py`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.decoding.engine import Engine
from prunella.device_runtime.decoding.limits import MIN_SCORE
from prunella.device_runtime.decoding.strategy import Decoded, Prefilled
from prunella.device_runtime.decoding.text_style import style_text
from prunella.device_runtime.transcript import Phrase, PhraseMatch

MAX_PASSES = 200
MAX_TOKENS = 200  # of one phrase
MAX_NODES = 200_000  # of a trie: tokens of all its phrases, beginnings that they share counted once


@dataclass(slots=True)
class _Node:
    children: dict[int, _Node] = field(default_factory=dict)
    phrase: Phrase | None = None
    longest: int = 0  # tokens of the longest phrase through here, its end included


class PhraseTrie:
    """Phrases as a trie of the decoder's tokens.

    Args:
        phrases: from `read_phrases`; of two that the model writes alike the first stays.
        tokenizer: the decoder's.
        eos_ids: tokens that end a transcript.
        text_style: how the model writes (`PromptSpec.text_style`).
        min_score: a phrase whose score is below is refused, 0 to 1. Higher: fewer false accepts, more commands missed.

    Raises:
        UsageError: a score out of range, a phrase without a word that the model could write, or more tokens in a phrase
            than `MAX_TOKENS`, in all than `MAX_NODES`.
    """

    def __init__(
        self,
        phrases: Iterable[Phrase],
        tokenizer: Tokenizer,
        eos_ids: Sequence[int],
        text_style: str = "as-is",
        *,
        min_score: float = MIN_SCORE,
    ) -> None:
        if not 0.0 <= min_score <= 1.0:
            raise UsageError(f"a phrase's score cannot reach {min_score}: give a number from 0 to 1")
        self.min_score = min_score
        self.eos_ids = tuple(eos_ids)
        self.root = _Node()
        self.count = 0
        self._nodes = 0
        for phrase in phrases:
            ids = tokenizer.encode(style_text(phrase.text, text_style), add_special_tokens=False).ids
            if not ids:
                raise UsageError(
                    f"the phrase '{phrase.text[:60]}' has no word that the model writes: spell it out"
                )
            if len(ids) > MAX_TOKENS:
                raise UsageError(
                    f"the phrase '{phrase.text[:60]}...' has {len(ids)} tokens (at most {MAX_TOKENS}): shorten it"
                )
            self._add(ids, phrase)

    def _add(self, ids: list[int], phrase: Phrase) -> None:
        node = self.root
        node.longest = max(node.longest, len(ids) + 1)
        for token in ids:
            if token not in node.children:
                node.children[token] = _Node()
                self._nodes += 1
            node = node.children[token]
            node.longest = max(node.longest, len(ids) + 1)
        if self._nodes > MAX_NODES:
            raise UsageError(f"the phrases have more than {MAX_NODES} tokens in all: split the list")
        if node.phrase is None:
            node.phrase = phrase
            self.count += 1


def find_phrase(
    engine: Engine, logits: Float32, trie: PhraseTrie, *, max_passes: int = MAX_PASSES
) -> PhraseMatch:
    """The most likely of a trie's phrases that reach its `min_score`, given the audio, or a refusal.

    Depth first, the likeliest token first; a branch is left as soon as it is less likely than the best phrase so far or
    can no longer reach the trie's `min_score`, so that most phrases are never run.

    Args:
        engine: after `start`. Afterwards it stands there again.
        logits: (vocab,) what `start` gave.
        trie: what may be said.
        max_passes: forward passes after which the best so far has to do.
    """
    search = _Search(engine, trie, max_passes)
    search.visit(trie.root, logits, 0.0)
    exact = search.passes < max_passes
    if search.phrase is None:
        return PhraseMatch(None, search.refused, passes=search.passes, exact=exact)
    score = math.exp(-search.cost / (len(search.best) + 1))
    return PhraseMatch(search.phrase, score, search.best, search.passes, exact)


class _Search:
    """Branch and bound. Costs are negative log-probabilities (nats) of what stands from the start."""

    def __init__(self, engine: Engine, trie: PhraseTrie, max_passes: int) -> None:
        self._engine = engine
        self._eos = list(trie.eos_ids)
        self._worst = -math.log(trie.min_score) if trie.min_score else math.inf  # a token, on average
        self._max_passes = max_passes
        self._said: list[int] = []
        self.passes = 0
        self.cost = math.inf
        self.refused = 0.0
        self.phrase: Phrase | None = None
        self.best: tuple[int, ...] = ()

    def visit(self, node: _Node, logits: Float32, cost: float) -> None:
        """`logits` follow the tokens that lead to `node`; they are not looked at again after the first pass."""
        children = list(node.children)
        chosen = _log_probabilities(logits, [*children, *self._eos])
        if node.phrase is not None:
            self._complete(node.phrase, cost - max(chosen[len(children) :]))
        for value, token in sorted(zip(chosen, children, strict=False), reverse=True):
            child = node.children[token]
            if self._can_win(cost - value, child):
                self._descend(token, child, cost - value)

    def _descend(self, token: int, node: _Node, cost: float) -> None:
        chain, nodes = [token], [node]
        while len(node.children) == 1 and node.phrase is None:
            ((token, node),) = node.children.items()
            chain.append(token)
            nodes.append(node)
        self.passes += 1
        # What only one token can follow costs one pass over the weights, however long it is.
        rows = self._engine.step(chain[0])[None] if len(chain) == 1 else self._engine.extend(chain)
        for row, token in zip(rows, chain[1:], strict=False):
            cost -= _log_probabilities(row, [token])[0]
        if self._can_win(cost, node):
            self._said += chain
            self.visit(node, rows[-1], cost)
            del self._said[-len(chain) :]
        self._engine.rewind(len(chain))

    def _can_win(self, cost: float, node: _Node) -> bool:
        return cost < self.cost and cost <= self._worst * node.longest and self.passes < self._max_passes

    def _complete(self, phrase: Phrase, cost: float) -> None:
        count = len(self._said) + 1
        if cost > self._worst * count:
            self.refused = max(self.refused, math.exp(-cost / count))
        elif cost < self.cost:
            self.cost, self.phrase, self.best = cost, phrase, tuple(self._said)


def _log_probabilities(logits: Float32, tokens: list[int]) -> list[float]:
    """(vocab,) logits → natural log-probabilities of some tokens."""
    largest = float(logits.max())
    total = float(np.exp(logits - largest).sum(dtype=np.float64))
    return [float(logits[token]) - largest - math.log(total) for token in tokens]


class Phrases:
    """The likeliest phrase of a list, or no text at all. A `Decoding`; it yields nothing before it knows."""

    def __init__(self, engine: Engine, trie: PhraseTrie) -> None:
        self._engine, self._trie = engine, trie

    def decode(self, utterance: Prefilled) -> Generator[str, None, Decoded]:
        """See `Decoding.decode`."""
        yield from ()
        found = find_phrase(self._engine, utterance.logits, self._trie)
        if found.phrase is None:
            return Decoded(found.tokens, "", "no-phrase", found.passes, found)
        return Decoded(found.tokens, found.phrase.text, "phrase", found.passes, found)
