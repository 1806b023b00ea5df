"""Prefix probabilities against the sum over every path, which is what they mean."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.device_runtime.decoding.ctc_prefix import BLANK, Prefix, PrefixScorer


def read(path: tuple[int, ...]) -> tuple[int, ...]:
    """The text of a path: repeats joined, blanks dropped."""
    return tuple(kind for kind, _ in itertools.groupby(path) if kind != BLANK)


def probabilities(frames: int, classes: int, seed: int) -> np.ndarray:
    logits = 3 * np.random.default_rng(seed).standard_normal((frames, classes))
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def extended(scorer: PrefixScorer, letters: tuple[int, ...]) -> Prefix:
    prefix = scorer.empty()
    for letter in letters:
        prefix = scorer.extend(prefix, letter)
    return prefix


class AllFrames:
    """The same over all frames, in logarithms: one running sum for each letter."""

    def __init__(self, table: np.ndarray) -> None:
        self.each = table.T
        self.sums = np.concatenate([np.zeros((len(self.each), 1)), np.cumsum(self.each, axis=1)], axis=1)

    def held(self, kind: int, before: np.ndarray) -> np.ndarray:
        held = np.full(len(before), -np.inf)
        held[1:] = np.logaddexp.accumulate(before[:-1] - self.sums[kind, :-1]) + self.sums[kind, 1:]
        return held

    def of(self, letters: tuple[int, ...]) -> tuple[float, float]:
        """Log-probabilities: of all texts that begin so, and of this one alone."""
        letter, blank = np.full(self.sums.shape[1], -np.inf), self.sums[BLANK]
        begins, last = 0.0, BLANK
        for kind in letters:
            before = blank if kind == last else np.logaddexp(letter, blank)
            begins = float(np.logaddexp.reduce(before[:-1] + self.each[kind]))
            letter = self.held(kind, before)
            blank, last = self.held(BLANK, letter), kind
        return begins, float(np.logaddexp(letter[-1], blank[-1]))


def spoken(seed: int, frames: int, classes: int) -> tuple[np.ndarray, list[int]]:
    """What a head hears that is mostly sure, with silences, and the letters said."""
    random = np.random.default_rng(seed)
    logits = 2 * random.standard_normal((frames, classes))
    said = np.where(random.random(frames) < 0.5, random.integers(1, classes, frames), BLANK)
    said[frames // 3 : frames // 2] = BLANK
    logits[np.arange(frames), said] += random.choice([4, 9], frames)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), list(read(tuple(said.tolist())))


@given(st.integers(0, 9_999), st.integers(10, 300), st.integers(2, 29), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_frames_left_out_are_worth_nothing(seed, frames, classes, wrong) -> None:
    table, letters = spoken(seed, frames, classes)
    random = np.random.default_rng(seed)
    for place in random.integers(0, max(1, len(letters)), wrong if letters else 0).tolist():
        letters[place] = int(random.integers(1, classes))
    plain, scorer = AllFrames(table), PrefixScorer(table)
    prefix = scorer.empty()
    for count in range(len(letters)):
        prefix = scorer.extend(prefix, letters[count])
        begins, whole = plain.of(tuple(letters[: count + 1]))
        assert prefix.log_probability == pytest.approx(begins, rel=1e-9, abs=1e-9)
        if whole > begins - 60:
            assert scorer.log_probability_whole(prefix) == pytest.approx(whole, rel=1e-9, abs=1e-9)
        else:
            assert scorer.log_probability_whole(prefix) <= begins - 59


@given(st.integers(1, 6), st.lists(st.integers(1, 2), max_size=5).map(tuple), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_a_prefix_has_the_probability_of_all_paths_that_begin_with_it(frames, letters, seed) -> None:
    table = probabilities(frames, 3, seed)
    begins = whole = 0.0
    for path in itertools.product(range(3), repeat=frames):
        probability = math.exp(sum(table[frame, kind] for frame, kind in enumerate(path)))
        text = read(path)
        begins += probability * (text[: len(letters)] == letters)
        whole += probability * (text == letters)
    scorer = PrefixScorer(table)
    prefix = extended(scorer, letters)
    assert math.exp(prefix.log_probability) == pytest.approx(begins, abs=1e-9)
    assert math.exp(scorer.log_probability_whole(prefix)) == pytest.approx(whole, abs=1e-9)


def test_long_audio_keeps_its_precision() -> None:
    """30 s of frames that are sure of what they say: probabilities of impossible letters are far below a float's range."""
    table = np.full((750, 29), -40.0)
    said = [1 + place % 28 for place in range(200)]
    table[:, BLANK] = 0.0
    for place, letter in enumerate(said):
        table[3 * place, BLANK], table[3 * place, letter] = -40.0, 0.0
    scorer = PrefixScorer(table)
    right = extended(scorer, tuple(said))
    assert right.log_probability == pytest.approx(0.0, abs=1e-6)
    assert scorer.log_probability_whole(right) == pytest.approx(0.0, abs=1e-6)
    assert extended(scorer, (*said[:100], said[101])).log_probability == pytest.approx(
        -40 + math.log(4), abs=0.01
    )


def test_more_letters_than_frames_cannot_be() -> None:
    assert extended(PrefixScorer(probabilities(2, 3, 0)), (1, 2, 1)).log_probability == -math.inf
