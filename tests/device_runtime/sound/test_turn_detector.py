"""The turn detector on synthetic probabilities: nothing lost, nothing twice, every turn ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.sound.turn_detector import (
    FRAME,
    Silence,
    TurnClosed,
    TurnDetector,
    TurnOpened,
    TurnOptions,
    TurnPaused,
    TurnResumed,
)

SHORT = TurnOptions(
    pre_roll=0.1, minimum_speech=0.1, tail=0.1, end_silence=0.25, maximum=1.6, silence_report=1.0
)


def run(probabilities, options=SHORT, extra=0, energies=None):
    detector = TurnDetector(options)
    energies = energies or probabilities
    events = []
    for probability, energy in zip(probabilities, energies, strict=True):
        floor = detector.needed_from
        for event in detector.push(probability, energy):
            start = getattr(event, "start", None)
            if start is not None and not isinstance(event, Silence):
                assert start >= floor, "asks for samples that it had given up"
            events.append(event)
    return events + detector.finish(extra)


streams = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.4, 0.6, 1.0]), st.integers(1, 60)), min_size=1, max_size=25
).map(lambda runs: [probability for probability, count in runs for _ in range(count)])


@settings(max_examples=150, deadline=None)
@given(streams, st.integers(0, FRAME - 1), st.randoms(use_true_random=False))
def test_every_sample_is_in_exactly_one_range_and_turns_do_not_overlap(probabilities, extra, random):
    energies = [random.random() for _ in probabilities]
    events = run(probabilities, extra=extra, energies=energies)
    position = 0
    open_id = None
    paused = False
    last_id = 0
    for event in events:
        if isinstance(event, TurnOpened):
            assert open_id is None
            assert event.utterance_id == last_id + 1
            assert event.start == position
            open_id = last_id = event.utterance_id
            paused = False
        elif isinstance(event, TurnPaused):
            assert event.utterance_id == open_id
            assert not paused
            assert event.start == position < event.stop
            paused = True
        elif isinstance(event, TurnResumed):
            assert event.utterance_id == open_id
            assert paused
            paused = False
        elif isinstance(event, TurnClosed):
            assert event.utterance_id == open_id
            assert event.start == position < event.stop
            assert event.start < event.speech_stop <= event.stop
            assert event.stop - event.start <= SHORT.maximum * 16_000 + FRAME
            position = event.stop
            open_id = None
        else:
            assert open_id is None
            assert event.start == position < event.stop
            position = event.stop
    assert open_id is None, "a turn never ended"
    assert position == len(probabilities) * FRAME + extra


@settings(max_examples=100, deadline=None)
@given(streams)
def test_a_pause_that_ends_the_turn_named_exactly_the_final_range(probabilities):
    pause = None
    for event in run(probabilities):
        if isinstance(event, TurnPaused):
            pause = event
        elif isinstance(event, TurnResumed):
            pause = None
        elif isinstance(event, TurnClosed):
            if event.reason == "silence" and pause is not None:
                assert (pause.start, pause.stop) == (event.start, event.stop)
            pause = None


@settings(max_examples=100, deadline=None)
@given(streams)
def test_enough_speech_is_always_found(probabilities):
    needed = round(SHORT.minimum_speech * 16_000 / FRAME)
    longest = run_length = 0
    for probability in probabilities:
        run_length = run_length + 1 if probability >= SHORT.threshold else 0
        longest = max(longest, run_length)
    closed = [event for event in run(probabilities) if isinstance(event, TurnClosed)]
    if longest >= needed:
        assert closed
    if not any(probability >= SHORT.threshold for probability in probabilities):
        assert not closed


def test_a_turn_has_its_pre_roll_and_its_tail():
    options = TurnOptions()
    events = run([0.0] * 50 + [1.0] * 40 + [0.0] * 50, options)
    (closed,) = (event for event in events if isinstance(event, TurnClosed))
    assert closed.start == (50 - round(options.pre_roll * 16_000 / FRAME)) * FRAME
    assert closed.speech_stop == 90 * FRAME
    assert closed.stop == (90 + round(options.tail * 16_000 / FRAME)) * FRAME


def test_a_click_is_silence_and_hysteresis_holds_a_word_together():
    assert not any(isinstance(event, TurnClosed) for event in run([0.0] * 20 + [1.0] + [0.0] * 20))
    wavering = [0.0] * 20 + [0.9] * 5 + [0.4] * 20 + [0.0] * 20
    (closed,) = (event for event in run(wavering) if isinstance(event, TurnClosed))
    assert closed.speech_stop == 45 * FRAME


def test_long_speech_is_split_at_its_quietest_frame():
    energies = [1.0] * 100
    energies[40] = 0.1
    closed = [event for event in run([1.0] * 100, SHORT, energies=energies) if isinstance(event, TurnClosed)]
    assert closed[0].reason == "split"
    assert closed[0].stop == 40 * FRAME
    assert closed[1].start == 40 * FRAME


@pytest.mark.parametrize(
    "wrong", [{"tail": 0.0}, {"maximum": 29.9}, {"end_silence": 0.1}, {"threshold": 0.2}, {"maximum": 1.0}]
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UsageError):
        TurnOptions(**wrong)
