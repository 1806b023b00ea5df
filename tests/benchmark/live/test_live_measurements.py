"""Latency and hallucinations of live sessions: the measures measure what they say."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from prunella.benchmark.live import latency as live_latency
from prunella.benchmark.live.hallucination import count_hallucinations
from prunella.benchmark.live.latency import measure_latency
from prunella.device_runtime.base.errors import ManifestError
from prunella.device_runtime.transcript import DecodeOptions, Segment, Timings, Transcript
from prunella.evaluation.manifest import read_manifest

pytestmark = pytest.mark.slow

MANIFEST = Path(__file__).parents[3] / "examples" / "clips" / "evaluation.jsonl"


class Waiting:
    """Answers after `seconds`; without text when `options.guards` is on."""

    def __init__(self, seconds, guarded=False):
        self.seconds = seconds
        self.options = DecodeOptions(guards=guarded)
        self.calls = 0

    def with_options(self, *, guards):
        return Waiting(self.seconds, guards)

    def stream(self, samples, *, draft=()):
        self.calls += 1
        time.sleep(self.seconds)
        text = "" if self.options.guards else "ghost"
        yield text
        spent = Timings(total=self.seconds)
        return Transcript(text, (Segment(0, 1, text, (1,), 0, "eos", spent),), spent)

    def transcribe(self, samples):
        steps = self.stream(samples)
        next(steps)
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def test_latency_has_the_end_silence_in_it_and_guessing_hides_the_decode():
    clip = next(row for row in read_manifest(MANIFEST).utterances if "cards_001" in row.id)
    decode, silence = 0.25, 0.5  # seconds
    guessing, waiting = measure_latency({"slow": Waiting(decode)}, [clip])
    assert (guessing.mode, waiting.mode) == ("guessing", "after the turn")
    assert guessing.utterances == waiting.utterances == 1
    assert guessing.compute_median == waiting.compute_median == decode
    assert guessing.guessed == 1
    assert waiting.guessed == 0
    assert waiting.latency_median > 0.9 * (silence + decode)
    assert 0.9 * silence < guessing.latency_median < waiting.latency_median - 0.4 * decode


def test_texts_while_someone_speaks_may_come_from_another_recognizer():
    clip = next(row for row in read_manifest(MANIFEST).utterances if "cards_001" in row.id)
    final, quick = Waiting(0.02), Waiting(0.01)
    row, _ = measure_latency({"slow": final}, [clip], partials={"slow": quick})
    assert row.compute_median == 0.02
    assert quick.calls > 0
    assert 1 <= final.calls <= 4  # pauses and the end, in both modes


def test_no_clip_of_the_wanted_length_is_said():
    with pytest.raises(ManifestError, match="--seconds"):
        live_latency.main(["nowhere", "--speech", str(MANIFEST), "--seconds", "300", "400"])


def test_texts_without_speech_are_counted_with_and_without_guards():
    model = Waiting(0.0)
    counts = list(count_hallucinations(model, 0.4, piece_seconds=1.0))
    assert len({count.kind for count in counts}) == len(counts) == 8
    assert {count.pieces for count in counts} == {3}
    assert {count.model_alone for count in counts} == {3}
    assert {count.with_guards for count in counts} == {0}
    assert {count.live_texts for count in counts} == {()}
    assert {count.example for count in counts} == {"ghost"}
    assert model.options == replace(DecodeOptions(), guards=False), "another one was asked"
