"""Confidence intervals by resampling clips: of a ratio of sums (WER, a speed-up) and of the difference of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 4_000
_CHUNK = 1 << 21  # indices drawn at once: 16 MB

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A ratio of sums and its percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Error rate of B minus that of A on the same clips (negative: B is better)."""

    rate_a: float
    rate_b: float
    difference: float
    low: float
    high: float
    p_value: float  # two-sided: how often resampling turns the sign, twice
    relative: float | None  # difference / rate_a; None where A makes no error
    clips: int


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap of sum(numerators) / sum(denominators) over clips; for WER: errors and reference words.

    Args:
        numerators: one number a clip.
        denominators: one number a clip, not negative.

    Raises:
        ValueError: no clip, or two lengths.
    """
    columns = _columns(numerators, denominators)
    sums = _resampled_sums(columns, resamples, seed)
    low, high = _percentiles(_ratio(sums[:, 0], sums[:, 1]), confidence)
    value = float(_ratio(columns[:, 0].sum(), columns[:, 1].sum()))
    return Interval(value, low, high)


def paired_difference(
    errors_a: Sequence[float],
    errors_b: Sequence[float],
    words: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Paired bootstrap of two systems on the same clips: every resample draws the same clips for both.

    Args:
        errors_a: errors of system A, one number a clip.
        errors_b: errors of system B on the same clips in the same order.
        words: reference words of these clips.

    Raises:
        ValueError: no clip, or different lengths.
    """
    columns = _columns(errors_a, errors_b, words)
    sums = _resampled_sums(columns, resamples, seed)
    differences = _ratio(sums[:, 1] - sums[:, 0], sums[:, 2])
    low, high = _percentiles(differences, confidence)
    # +1: with finitely many resamples a p-value of exactly 0 cannot be claimed.
    tail = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    errors_of_a, errors_of_b, total = columns.sum(axis=0)
    rate_a, rate_b = float(_ratio(errors_of_a, total)), float(_ratio(errors_of_b, total))
    return PairedDifference(
        rate_a=rate_a,
        rate_b=rate_b,
        difference=rate_b - rate_a,
        low=low,
        high=high,
        p_value=min(1.0, 2 * (tail + 1) / (resamples + 1)),
        relative=(rate_b - rate_a) / rate_a if rate_a else None,
        clips=len(columns),
    )


def _columns(*columns: Sequence[float]) -> Floats:
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"a bootstrap needs one number a clip in every column, got lengths {sorted(lengths)}"
        )
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def _resampled_sums(columns: Floats, resamples: int, seed: int) -> Floats:
    """(clips, c) → (resamples, c): sums over clips drawn with replacement, in chunks of bounded memory."""
    clips = len(columns)
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // clips)
    sums = [
        columns[random.integers(0, clips, size=(min(chunk, resamples - start), clips))].sum(axis=1)
        for start in range(0, resamples, chunk)
    ]
    return np.concatenate(sums)


def _ratio(numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> Floats:
    """Elementwise ratio; a resample of clips without a single word counts as one word."""
    bottom = np.asarray(denominators, dtype=np.float64)
    return np.asarray(numerators, dtype=np.float64) / np.where(bottom > 0, bottom, 1.0)


def _percentiles(values: Floats, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
