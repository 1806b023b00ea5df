"""A live session over a recognizer and a speech detector whose answers follow from the samples."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from prunella.device_runtime.base.errors import AudioError, ClosedError
from prunella.device_runtime.live.events import LiveOptions
from prunella.device_runtime.live.session import LiveSession
from prunella.device_runtime.transcript import Segment, Timings, Transcript

RATE = 16_000
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def loud(frame) -> float:
    return float(np.abs(frame).max() > 0.05)


def speech(seconds: float) -> np.ndarray:
    return np.where(np.arange(int(seconds * RATE)) % 40 < 20, 0.5, -0.5).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


class Counting:
    """Says one word per half second of loud audio. `gate` holds it up, `calls` is what it was asked."""

    def __init__(self, text=None):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.text = text

    def stream(self, samples, *, draft=()):
        self.calls.append((len(samples), tuple(draft)))
        self.started.set()
        assert self.gate.wait(20)
        count = int(np.count_nonzero(np.abs(samples) > 0.05) / RATE * 2)
        text = " ".join(WORDS[:count]) if self.text is None else self.text
        yield text
        segment = Segment(0.0, len(samples) / RATE, text, tuple(range(count)), 0, "eos", Timings(total=0.01))
        return Transcript(text, (segment,))


def session(recognizer, events, **options):
    return LiveSession(recognizer, events.append, options=LiveOptions(**options), vad=loud)


def settle(live):
    live.wait()


def blocks(samples, size=800):
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def test_ranges_tile_the_stream_and_finals_come_in_order():
    stream = np.concatenate(
        [silence(1), speech(1.6), silence(1), speech(0.05), silence(2), speech(2.6), silence(0.3)]
    )
    events = []
    with session(Counting(), events, partial_interval=0) as live:
        for block in blocks(stream):
            live.feed(block)
    finals = [event for event in events if event.type == "final"]
    assert [event.text for event in finals] == ["one two three", "one two three four five"]
    assert [event.utterance_id for event in finals] == [1, 2]
    assert finals[0].speech_end == pytest.approx(2.6, abs=0.04)
    ranges = [event for event in events if event.type != "partial"]
    assert ranges[0].t0 == 0
    for before, after in pairwise(ranges):
        assert before.t1 == after.t0
    assert ranges[-1].t1 == pytest.approx(len(stream) / RATE)


@pytest.mark.parametrize("size", [1, 511, 512, 4096, 10**6])
def test_the_size_of_the_blocks_changes_nothing(size):
    stream = np.concatenate([silence(0.4), speech(1.1), silence(0.9), speech(0.7)])[: 160 * 100]
    expected, events = [], []
    for out, step in ((expected, 777), (events, size)):
        with session(Counting(), out, partial_interval=0, speculate=False) as live:
            for block in blocks(stream, step):
                live.feed(block)
    assert [event.to_json() | {"timings": 0} for event in events] == [
        event.to_json() | {"timings": 0} for event in expected
    ]


def test_a_final_is_decoded_from_exactly_its_range():
    recognizer, events = Counting(), []
    with session(recognizer, events, partial_interval=0, speculate=False) as live:
        live.feed(np.concatenate([silence(0.5), speech(1.0), silence(1)]))
    (final,) = (event for event in events if event.type == "final")
    assert recognizer.calls == [(round((final.t1 - final.t0) * RATE), ())]


def test_the_final_text_is_ready_before_the_turn_ends():
    recognizer, events = Counting(), []
    live = session(recognizer, events, partial_interval=0)
    live.feed(np.concatenate([silence(0.5), speech(1.1), silence(0.3)]))
    settle(live)
    assert len(recognizer.calls) == 1
    assert not [event for event in events if event.type == "final"]
    live.feed(silence(0.5))
    live.finish()
    (final,) = (event for event in events if event.type == "final")
    assert len(recognizer.calls) == 1
    assert final.guessed
    assert final.text == "one two"


def test_a_guess_is_thrown_away_when_speech_goes_on():
    recognizer, events = Counting(), []
    live = session(recognizer, events, partial_interval=0)
    live.feed(np.concatenate([silence(0.5), speech(1.1), silence(0.3)]))
    settle(live)
    live.feed(np.concatenate([speech(1.1), silence(1)]))
    live.finish()
    (final,) = (event for event in events if event.type == "final")
    assert final.text == "one two three four"
    assert recognizer.calls[1][1] == (0, 1), "the guess is the draft of what follows"


@pytest.mark.parametrize("speculate", [True, False])
def test_partials_may_come_from_a_faster_recognizer_but_no_final_does(speculate):
    careful, quick, events = Counting("the careful text"), Counting(), []
    live = LiveSession(
        careful, events.append, partials=quick, options=LiveOptions(speculate=speculate), vad=loud
    )
    for block in blocks(np.concatenate([speech(4), silence(1)])):
        live.feed(block)
        settle(live)
    live.finish()
    (final,) = (event for event in events if event.type == "final")
    assert (final.text, final.guessed) == ("the careful text", speculate)
    assert len(careful.calls) == 1 and careful.calls[0][1], "the last partial is the draft"
    partials = [event.text for event in events if event.type == "partial" and event.t1 <= 4]
    assert partials and all("one two three four five six".startswith(text) for text in partials)
    assert quick.calls


def test_partials_grow_and_the_last_one_is_the_draft_of_the_final():
    recognizer, events = Counting(), []
    live = session(recognizer, events, speculate=False)
    for block in blocks(speech(4)):
        live.feed(block)
        settle(live)
    live.feed(silence(1))
    live.finish()
    partials = [event for event in events if event.type == "partial"]
    assert len(partials) >= 3
    for before, after in pairwise(partials):
        assert after.text.startswith(before.text)
        assert after.text != before.text
    assert events[-2].type == "final"
    draft = recognizer.calls[-1][1]
    assert len(draft) >= 5
    assert {event.utterance_id for event in partials} == {1}


def test_feeding_never_waits_for_a_decode_and_slow_decodes_leave_partials_out():
    recognizer, events = Counting(), []
    recognizer.gate.clear()
    live = session(recognizer, events)
    live.feed(speech(1.5))
    assert recognizer.started.wait(10)
    live.feed(speech(8))  # a dozen partials are due; returns although nothing can be decoded
    assert len(recognizer.calls) == 1
    live.feed(silence(1))
    recognizer.gate.set()
    live.finish()
    (final,) = (event for event in events if event.type == "final")
    assert final.text == " ".join(WORDS)
    assert len(recognizer.calls) == 2, "the stale partials were decoded"


def test_a_full_backlog_makes_feed_wait_and_loses_nothing():
    recognizer, events = Counting(), []
    recognizer.gate.clear()
    live = session(recognizer, events, partial_interval=0, speculate=False, max_backlog=3.0)
    utterance = np.concatenate([speech(1.1), silence(0.9)])
    feeder = threading.Thread(target=lambda: [live.feed(utterance) for _ in range(8)])
    feeder.start()
    feeder.join(0.5)
    assert feeder.is_alive()
    assert 0 < live.backlog <= 3.0
    assert live.seconds_fed < 8
    recognizer.gate.set()
    feeder.join(10)
    live.finish()
    assert [event.text for event in events if event.type == "final"] == ["one two"] * 8
    assert live.backlog == 0


class Endless:
    """Never comes to an end by itself, as a decode on a machine that is far behind."""

    def __init__(self):
        self.threads = []

    def stream(self, samples, *, draft=()):
        self.threads.append(threading.current_thread())
        while True:
            time.sleep(0.01)
            yield "on and on"


@pytest.mark.parametrize("waits_in", ["feed", "finish"])
def test_closing_a_session_that_is_behind_wakes_who_waits_and_ends_its_thread(waits_in):
    recognizer, outcome = Endless(), []
    live = session(recognizer, [], partial_interval=0, speculate=False, max_backlog=3.0)
    utterance = np.concatenate([speech(1.1), silence(0.9)])

    def use():
        try:
            for _ in range(8 if waits_in == "feed" else 1):
                live.feed(utterance)
            live.finish()
        except ClosedError as error:
            outcome.append(error)

    user = threading.Thread(target=use, daemon=True)
    user.start()
    while not recognizer.threads:
        time.sleep(0.01)
    user.join(0.2)
    assert user.is_alive(), "it waits for the decode"
    closer = threading.Thread(target=live.close, daemon=True)
    for thread in (closer, user):
        if thread is closer:
            thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert len(outcome) == 1
    assert not recognizer.threads[0].is_alive()


def test_what_the_source_lost_is_reported_once_and_counts_as_time():
    events = []
    with session(Counting(), events, partial_interval=0) as live:
        live.feed(np.concatenate([silence(0.5), speech(1.0), silence(1)]))
        live.feed(np.concatenate([silence(0.5), speech(1.0), silence(1)]), dropped=8_000)
        live.feed(silence(0.5), dropped=1_600)
    finals = [event for event in events if event.type == "final"]
    assert sum(event.drops for event in events) == 9_600
    assert finals[0].speech_end == pytest.approx(1.5, abs=0.04)
    assert finals[1].speech_end == pytest.approx(4.5, abs=0.04)
    assert events[-1].t1 == pytest.approx(2.5 + 0.5 + 2.5 + 0.1 + 0.5)


def test_an_utterance_without_text_is_a_silence():
    events = []
    with session(Counting(text=""), events) as live:
        live.feed(np.concatenate([silence(0.5), speech(1.0), silence(1)]))
    assert {event.type for event in events} == {"silence"}
    assert 1 in {event.utterance_id for event in events}


def test_latency_counts_from_the_capture_of_the_last_speech_sample():
    events = []
    now = time.perf_counter()
    with session(Counting(), events, partial_interval=0) as live:
        live.feed(np.concatenate([silence(0.5), speech(1.004)]), captured=now - 1_000)  # 47 whole frames
        live.feed(silence(1), captured=now)
    (final,) = (event for event in events if event.type == "final")
    assert final.timings["latency"] == pytest.approx(1_000, rel=0.1)
    assert final.timings["after_turn"] < 0.1 * final.timings["latency"]


def test_what_the_recognizer_raises_reaches_who_feeds():
    class Broken:
        def stream(self, samples, *, draft=()):
            raise AudioError("no")
            yield ""

    live = session(Broken(), [], partial_interval=0)
    with pytest.raises(AudioError):
        live.feed(np.concatenate([speech(1), silence(1)]))
        live.finish()


def test_unusable_samples_are_refused_and_a_finished_session_stays_finished():
    live = session(Counting(), [])
    with pytest.raises(AudioError):
        live.feed([np.nan])
    with pytest.raises(AudioError):
        live.feed(np.zeros((2, 2)))
    live.finish()
    live.finish()
    with pytest.raises(RuntimeError):
        live.feed(silence(0.1))


def test_memory_is_that_of_the_open_utterance():
    live = session(Counting(), [], partial_interval=0)
    for _ in range(20):
        live.feed(silence(10))
    assert live.seconds_held < 32 * 512 / 16_000
    live.finish()


def test_nothing_is_decoded_between_a_guess_and_its_final():
    recognizer, events = Counting(), []
    with session(recognizer, events, partial_interval=0.05) as live:
        for block in (speech(1.0), *[silence(0.032)] * 30):
            live.feed(block)
            settle(live)
    asked = [length for length, _ in recognizer.calls]
    final = next(event for event in events if event.type == "final")
    assert final.guessed and asked[-1] == round((final.t1 - final.t0) * RATE), asked
    assert asked == sorted(set(asked))
