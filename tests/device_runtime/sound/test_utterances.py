"""Recordings are cut in their pauses, while they are read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.device_runtime.sound.audio import split_at_quiet_points
from prunella.device_runtime.sound.utterances import cut_in_pauses, find_utterances


def loud(frame):
    return bool(np.abs(frame).max() > 0.05)


def all_loud(frames):
    return np.array([loud(frame) for frame in frames])


def recording(*seconds):
    """Noise and silence by turns, beginning with silence."""
    random = np.random.default_rng(0)
    return np.concatenate(
        [
            (number % 2) * random.uniform(-0.5, 0.5, int(16_000 * length)).astype(np.float32)
            for number, length in enumerate(seconds)
        ]
    ).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    seconds=st.lists(st.floats(0.01, 6.0), min_size=1, max_size=8),
    size=st.integers(1, 70_000),
    longest=st.sampled_from([3.0, 29.5]),
)
def test_every_sample_is_in_one_piece_and_no_speech_in_a_silence(seconds, size, longest):
    samples = recording(*seconds)
    blocks = [samples[start : start + size] for start in range(0, len(samples), max(size, 400))]
    samples = np.concatenate(blocks) if blocks else samples
    pieces = list(cut_in_pauses(blocks, all_loud, longest))
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces)][: len(pieces)]
    assert (pieces[-1].stop if pieces else 0) == len(samples)
    for piece in pieces:
        part = samples[piece.start : piece.stop]
        if piece.samples is None:
            assert not loud(np.append(part, 0))
        else:
            np.testing.assert_array_equal(piece.samples, part)
            assert 0 < len(part) <= longest * 16_000


def test_long_pauses_are_left_out_and_short_ones_stay():
    samples = recording(12.0, 2.0, 0.8, 1.0, 3.0, 1.5, 0.9)
    spoken = [p for p in cut_in_pauses([samples], all_loud, 29.5) if p.samples is not None]
    assert [round(p.start / 16_000, 1) for p in spoken] == pytest.approx([11.5, 18.3], abs=0.1)
    assert [round(p.stop / 16_000, 1) for p in spoken] == pytest.approx([16.3, 21.2], abs=0.1)


def test_a_recording_without_a_long_pause_stays_whole():
    samples = recording(0.9, 2.0, 0.9, 1.0, 0.9)
    (piece,) = cut_in_pauses([samples], all_loud, 29.5)
    np.testing.assert_array_equal(piece.samples, samples)


def test_speech_without_a_pause_is_cut_where_it_always_was():
    samples = recording(0.0, 95.0)
    pieces = list(cut_in_pauses([samples], all_loud, 29.5))
    assert [(p.start, p.stop) for p in pieces] == split_at_quiet_points(samples, 29.5)


def test_utterances_are_the_same_however_the_blocks_come():
    samples = recording(2.0, 1.0, 2.0, 3.0, 2.0)
    vad = lambda frame: float(loud(frame))  # noqa: E731
    whole = list(find_utterances([samples], vad))
    blocks = [samples[start : start + 333] for start in range(0, len(samples), 333)]
    parts = list(find_utterances(blocks, vad))
    assert len(whole) == 2 and [(p.start, p.stop) for p in parts] == [(p.start, p.stop) for p in whole]
    for piece in parts:
        np.testing.assert_array_equal(piece.samples, samples[piece.start : piece.stop])
