"""The largest of a row by blocks against sorting all of it, equal ones among them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.device_runtime.decoding.top_tokens import log_totals, top_tokens


@given(st.integers(0, 10_000), st.integers(1, 9_000), st.integers(1, 70), st.sampled_from([2, 5, 100, 10**6]))
@settings(max_examples=150, deadline=None)
def test_the_largest_are_those_of_a_sorted_row(seed: int, size: int, count: int, kinds: int) -> None:
    """Few kinds of numbers: most are equal to others, also at the border."""
    row = np.random.default_rng(seed).integers(0, kinds, size).astype(np.float32)
    tokens = top_tokens(row, count)
    assert len(set(tokens.tolist())) == len(tokens) == min(count, size)
    assert sorted(row[tokens].tolist()) == np.sort(row)[-count:].tolist()


@pytest.mark.parametrize("value", [np.nan, -np.inf, 0.0])
def test_a_row_that_says_nothing_has_tokens(value: float) -> None:
    assert len(set(top_tokens(np.full(9_000, value, np.float32), 32).tolist())) == 32


def test_totals_are_those_of_the_softmax() -> None:
    rows = 20 * np.random.default_rng(0).standard_normal((3, 5_000)).astype(np.float32)
    expected = np.logaddexp.reduce(rows.astype(np.float64), axis=1)
    np.testing.assert_allclose(log_totals(rows), expected, rtol=1e-6)
