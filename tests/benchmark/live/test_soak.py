"""The soak, shortened: its parts hold on the reference, and its judges see what is wrong."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from prunella.benchmark.live.judge import compare, tiled
from prunella.benchmark.live.soak import endure, in_real_time, overloaded
from prunella.benchmark.live.stream import BLOCK, PacedSource, SpeechAtKnownTimes, Spoken, not_speech
from prunella.device_runtime.live.events import LiveEvent
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.transcript import Segment, Timings, Transcript
from prunella.evaluation.manifest import read_manifest

pytestmark = pytest.mark.slow

CLIPS = Path(__file__).parents[3] / "examples" / "clips"


@pytest.fixture(scope="module")
def commands():
    rows = read_manifest(CLIPS / "evaluation.jsonl").utterances
    return [row for row in rows if row.duration < 3]


class Slow:
    """Says a word for any audio, after a twentieth of its length."""

    def stream(self, samples, *, draft=()):
        seconds = len(samples) / 16_000
        time.sleep(0.05 * seconds)
        yield "word"
        return Transcript("word", (Segment(0, seconds, "word", (1,), 0, "eos", Timings(total=0.1)),))


def test_the_reference_endures_half_a_minute(reference_bundle, commands):
    from prunella.device_runtime.opening import open_transcriber

    report = endure(open_transcriber(reference_bundle), commands, 0.5)
    assert report.spoken >= 4
    assert not report.missed
    assert not report.false_triggers
    assert report.tiled
    assert report.times_real_time > 1


def test_a_busy_decoder_loses_nothing_in_real_time(commands):
    report = in_real_time(Slow(), commands, 4.0)
    assert report.held
    assert report.spoken >= 1
    assert report.dropped == report.lost_events == 0


def test_an_overload_is_counted_and_got_over(commands):
    short = [row for row in commands if row.duration < 2]
    overload, recovered = overloaded(Slow(), short, 8.0, speed=32.0)
    assert overload.spoken >= 2
    assert overload.held
    assert overload.dropped == overload.lost_events > 0
    assert recovered.held
    assert recovered.dropped > 0


def test_speech_is_where_it_is_said_to_be(commands):
    speech = SpeechAtKnownTimes(commands, 20.0, noise_dbfs=-80)
    stream = np.concatenate(list(speech))
    assert len(stream) == 20 * 16_000
    assert speech.spoken
    quiet = np.ones(len(stream), bool)
    for clip in speech.spoken:
        start, stop = round(clip.t0 * 16_000), round(clip.t1 * 16_000)
        assert np.abs(stream[start:stop]).max() > 0.05
        quiet[start:stop] = False
    assert np.abs(stream[quiet]).max() < 0.001
    again = np.concatenate(list(SpeechAtKnownTimes(commands, 20.0, noise_dbfs=-80)))
    np.testing.assert_array_equal(stream, again)


def test_misses_and_made_up_texts_are_seen():
    spoken = [Spoken(1.0, 2.0, "a", "x"), Spoken(5.0, 6.0, "b", "y")]
    events = [
        LiveEvent("final", 1, 0.8, 2.2, "x", speech_end=2.0),
        LiveEvent("final", 2, 3.0, 4.0, "ghost", speech_end=3.9),
        LiveEvent("final", 3, 5.0, 6.0, "", speech_end=6.0),
    ]
    missed, made_up = compare(events, spoken)
    assert missed == [spoken[1]]
    assert made_up == [events[1]]


def test_gaps_and_overlaps_of_ranges_are_seen():
    first, second = LiveEvent("silence", None, 0.0, 1.0), LiveEvent("final", 1, 1.0, 2.5, "x")
    partial = LiveEvent("partial", 1, 1.0, 2.0, "x")
    assert tiled([first, partial, second], 2.5)
    assert not tiled([first, second], 3.0)
    assert not tiled([first, LiveEvent("final", 1, 1.1, 2.5, "x")], 2.5)
    assert not tiled([second], 2.5)


def test_a_paced_source_keeps_its_pace_and_counts_what_it_loses():
    blocks = [np.full(BLOCK, index / 100, np.float32) for index in range(20)]
    began = time.perf_counter()
    received = list(PacedSource(iter(blocks), speed=10.0))
    assert time.perf_counter() - began > 0.95 * len(blocks) * BLOCK / SAMPLE_RATE / 10.0
    np.testing.assert_array_equal(np.concatenate([b.samples for b in received]), np.concatenate(blocks))
    source = PacedSource(iter(blocks), speed=1e6, queue_seconds=0.5)
    taken = []
    for block in source:
        time.sleep(0.05)
        taken.append(block)
    assert source.dropped == sum(block.dropped for block in taken) > 0
    assert source.dropped + sum(len(block.samples) for block in taken) == source.delivered


def test_every_kind_of_not_speech_has_its_share():
    kinds = {}
    for kind, block in not_speech(16.0):
        kinds.setdefault(kind, []).append(block)
        assert np.isfinite(block).all()
    lengths = {kind: sum(map(len, blocks)) for kind, blocks in kinds.items()}
    assert len(set(lengths.values())) == 1
    assert not np.concatenate(kinds.pop("silence")).any()
    for kind, blocks in kinds.items():
        assert np.concatenate(blocks).std() > 0.001, kind
