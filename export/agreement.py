"""How far an engine's numbers are from PyTorch's on a clip: audio embeddings, letters, logits along the words, next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.decoding.engine import Engine


@dataclass(frozen=True)
class Heard:
    """What an engine makes of a clip.

    Attributes:
        embeddings: (audio_tokens, hidden) float32.
        letters: (frames, classes) float32 log-probabilities; None without a CTC head.
        logits: (len(tokens), vocab) float32: those that each token was chosen from.
        tokens: the most likely ones of the engine that leads, the end token included.
    """

    embeddings: Float32
    letters: Float32 | None
    logits: Float32
    tokens: tuple[int, ...]


def lead(engine: Engine, samples: Float32, ends: Sequence[int], most: int) -> Heard:
    """Decode greedily, without guards, up to an end token or `most` tokens."""
    embeddings, letters, rows = _begin(engine, samples)
    tokens = [int(rows[0].argmax())]
    while tokens[-1] not in ends and len(tokens) < most:
        rows.append(engine.step(tokens[-1]).copy())
        tokens.append(int(rows[-1].argmax()))
    return Heard(embeddings, letters, np.stack(rows), tuple(tokens))


def follow(engine: Engine, samples: Float32, tokens: Sequence[int]) -> Heard:
    """Say given tokens, one by one as on a device."""
    embeddings, letters, rows = _begin(engine, samples)
    rows += [engine.step(token).copy() for token in tokens[:-1]]
    return Heard(embeddings, letters, np.stack(rows), tuple(tokens))


def _begin(engine: Engine, samples: Float32) -> tuple[Float32, Float32 | None, list[Float32]]:
    embeddings = engine.encode(samples)
    letters = engine.ctc_log_probs
    return embeddings, None if letters is None else letters.copy(), [engine.start(embeddings).copy()]


@dataclass(frozen=True)
class Difference:
    """Of two arrays of one shape, in standard deviations of the expected values.

    Attributes:
        largest: of any value.
        rms: root mean square.
    """

    largest: float
    rms: float


def pooled(parts: Sequence[tuple[Difference, int]]) -> Difference:
    """Of several clips, each with the number of its values: the largest of all, the root mean square over all."""
    largest = float(np.max([part.largest for part, _ in parts]))  # NaN where one is no number
    squares = sum(part.rms**2 * count for part, count in parts)
    return Difference(largest, float(np.sqrt(squares / sum(count for _, count in parts))))


def difference(expected: Float32, found: Float32, *, centered: bool = False) -> Difference:
    """How far `found` is from `expected`.

    Args:
        expected: of PyTorch, (rows, values).
        found: of an engine; infinitely far where its shape is another.
        centered: for the root mean square, take each row's mean away: what is added to all logits changes nothing.
    """
    if expected.shape != found.shape:
        return Difference(float("inf"), float("inf"))
    deviation = max(float(expected.std()), 1e-12)
    off = (found - expected).astype(np.float64)
    largest = float(np.abs(off).max(initial=0.0)) / deviation
    if centered:
        off -= off.mean(axis=1, keepdims=True)
        deviation = max(float((expected - expected.mean(axis=1, keepdims=True)).std()), 1e-12)
    return Difference(largest, float(np.sqrt(np.square(off).mean())) / deviation)


@dataclass(frozen=True)
class OtherToken:
    """Where an engine's next token is not PyTorch's.

    Attributes:
        clip: that it is in.
        place: of the token in the answer.
        expected: PyTorch's.
        found: the engine's.
        gap: between PyTorch's two logits, in standard deviations of its logits: small ones are near ties.
    """

    clip: str
    place: int
    expected: int
    found: int
    gap: float


def other_tokens(clip: str, expected: Heard, found: Heard) -> tuple[OtherToken, ...]:
    """All of a clip, the words before each being PyTorch's."""
    if expected.logits.shape != found.logits.shape:
        return ()
    deviation = max(float(expected.logits.std()), 1e-12)
    others = []
    for place, (row, theirs) in enumerate(zip(expected.logits, found.logits, strict=True)):
        token, other = expected.tokens[place], int(theirs.argmax())
        if other != token:
            others.append(OtherToken(clip, place, token, other, float(row[token] - row[other]) / deviation))
    return tuple(others)
