"""The most likely of a vocabulary's tokens, and what all of them are worth together: each asked once for every token said."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32

_BLOCK = 128  # tokens; whole rows are only looked at for the largest of each block


def top_tokens(row: Float32, count: int) -> npt.NDArray[np.int64]:
    """(vocab,) logits → the tokens of the `count` largest, in no order; which of equal ones is not said.

    The blocks of the `count` largest maxima hold as many logits that are no less than the least of these maxima: only those
    are partitioned, some dozens of a whole vocabulary.
    """
    size = len(row)
    blocks = size // _BLOCK
    if count >= min(size, blocks):
        return np.argpartition(row, max(0, size - count))[max(0, size - count) :]
    body = row[: blocks * _BLOCK].reshape(blocks, _BLOCK)
    largest = body.max(axis=1)
    least = np.partition(largest, blocks - count)[blocks - count]
    (places,) = np.nonzero(largest >= least)
    block, offset = np.nonzero(body[places] >= least)
    tokens = places[block] * _BLOCK + offset
    (behind,) = np.nonzero(row[blocks * _BLOCK :] >= least)
    tokens = np.concatenate([tokens, behind + blocks * _BLOCK])
    if len(tokens) < count:  # of numbers that are none
        return np.argpartition(row, size - count)[size - count :]
    if len(tokens) == count:
        return tokens
    return tokens[np.argpartition(row[tokens], len(tokens) - count)[len(tokens) - count :]]


def log_totals(rows: Float32) -> list[float]:
    """(n, vocab) logits → of each row the logarithm of the sum of their exponentials."""
    tops = rows.max(axis=1, keepdims=True)
    powers = rows - tops
    np.exp(powers, out=powers)
    totals: list[float] = (tops[:, 0] + np.log(powers.sum(axis=1, dtype=np.float64))).tolist()
    return totals
