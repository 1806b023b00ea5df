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
    prefix = extended(PrefixScorer(table), letters)
    assert math.exp(prefix.log_probability) == pytest.approx(begins, abs=1e-9)
    assert math.exp(prefix.log_probability_whole) == pytest.approx(whole, abs=1e-9)


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
    assert right.log_probability_whole == pytest.approx(0.0, abs=1e-6)
    assert extended(scorer, (*said[:100], said[101])).log_probability == pytest.approx(
        -40 + math.log(4), abs=0.01
    )


def test_more_letters_than_frames_cannot_be() -> None:
    assert extended(PrefixScorer(probabilities(2, 3, 0)), (1, 2, 1)).log_probability == -math.inf
