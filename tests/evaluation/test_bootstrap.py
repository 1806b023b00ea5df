import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.evaluation.bootstrap import paired_difference, ratio_interval

COUNTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=20)


@given(COUNTS)
@settings(max_examples=50)
def test_the_interval_holds_the_value_and_stays_within_the_clips(rows):
    errors, _, words = zip(*rows, strict=True)
    interval = ratio_interval(errors, words, resamples=500)
    rates = [e / w for e, w in zip(errors, words, strict=True)]
    assert interval.value == pytest.approx(sum(errors) / sum(words))
    assert min(rates) - 1e-9 <= interval.low <= interval.high <= max(rates) + 1e-9
    assert interval == ratio_interval(errors, words, resamples=500)


def test_coverage_is_near_what_is_claimed():
    random = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        words = random.integers(5, 15, size=60)
        errors = random.binomial(words, 0.2)
        interval = ratio_interval(errors, words, resamples=400, seed=seed)
        hits += interval.low <= 0.2 <= interval.high
    assert 0.87 <= hits / 200 <= 0.99


def test_chunks_do_not_change_what_is_drawn_and_more_clips_narrow_it():
    random = np.random.default_rng(2)
    widths = []
    for clips in (50, 800, 3000):
        words = np.full(clips, 10)
        interval = ratio_interval(random.binomial(words, 0.3), words)
        widths.append(interval.high - interval.low)
    assert widths[0] > widths[1] > widths[2] > 0


@given(COUNTS)
@settings(max_examples=50)
def test_a_system_against_itself_differs_by_nothing(rows):
    errors, _, words = zip(*rows, strict=True)
    d = paired_difference(errors, errors, words, resamples=200)
    assert (d.difference, d.low, d.high, d.p_value) == (0, 0, 0, 1)
    assert d.relative == (0 if sum(errors) else None)


@given(COUNTS)
@settings(max_examples=50)
def test_the_difference_is_antisymmetric(rows):
    a, b, words = zip(*rows, strict=True)
    there, back = paired_difference(a, b, words, resamples=300), paired_difference(b, a, words, resamples=300)
    assert there.difference == pytest.approx(-back.difference)
    assert there.low == pytest.approx(-back.high)
    assert there.p_value == back.p_value


def test_pairing_sees_what_two_separate_intervals_cannot():
    random = np.random.default_rng(3)
    words = np.full(200, 10)
    hard = random.integers(
        0, 9, size=200
    )  # clips differ a lot, the systems by little and always in one direction
    better, worse = hard, hard + random.binomial(1, 0.3, size=200)
    d = paired_difference(worse, better, words)
    assert d.high < 0 and d.p_value < 0.01
    a, b = ratio_interval(worse, words), ratio_interval(better, words)
    assert b.high > a.low


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="one number a clip"):
        ratio_interval([], [])
    with pytest.raises(ValueError, match="one number a clip"):
        paired_difference([1], [1, 2], [3])


def test_clips_without_words_do_not_divide_by_zero():
    assert ratio_interval([1], [0]).value == 1
