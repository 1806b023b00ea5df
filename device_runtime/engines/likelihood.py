"""From logits to the likelihood of given tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunella.device_runtime.base.arrays import Float32


def negative_log_likelihood(logits: Float32, tokens: Sequence[int]) -> Float32:
    """(n, vocab) logits and the n tokens that followed → (n,) nats, summed in float64."""
    wide = logits.astype(np.float64)
    largest = wide.max(axis=-1)
    total = largest + np.log(np.exp(wide - largest[:, None]).sum(axis=-1))
    losses: Float32 = (total - wide[np.arange(len(tokens)), tokens]).astype(np.float32)
    return losses
