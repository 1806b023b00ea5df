"""Noise is told from speech before anything is encoded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunella.device_runtime.sound.audio import load_audio
from prunella.device_runtime.sound.speech_gate import SpeechGate, doubts
from prunella.device_runtime.transcript import DecodeOptions

CLIPS = sorted((Path(__file__).parents[3] / "examples" / "clips" / "evaluation").iterdir())


@pytest.fixture(scope="module")
def gate() -> SpeechGate:
    return SpeechGate()


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_speech_is_heard(gate, clip):
    samples = load_audio(clip)
    assert gate.hears_speech(samples, 0.3)
    assert gate.hears_speech(np.pad(samples, (40_000, 40_000)), 0.3)


@pytest.mark.parametrize("level", [0.003, 0.03, 0.3])
def test_noise_is_not(gate, level):
    rng = np.random.default_rng(0)
    white = rng.normal(size=80_000).astype(np.float32)
    brown = np.cumsum(white)
    for noise in (white, brown / np.abs(brown).max(), np.sin(np.arange(80_000) * 0.05)):
        assert not gate.hears_speech((noise * level).astype(np.float32), 0.3)


def test_what_is_not_speech_is_never_encoded(scripted, gate):
    noise = np.random.default_rng(0).normal(size=32_000).astype(np.float32) * 0.05
    plain = scripted("hello", "hello", "hello")
    said = {}
    for name, options in (
        ("guarded", DecodeOptions()),
        ("unguarded", DecodeOptions(guards=False)),
        ("ungated", DecodeOptions(speech_probability=0)),
    ):
        gated = replace(plain, options=options, speech_gate=gate)
        said[name] = gated.transcribe(noise)
    assert said["guarded"].text == "" and said["guarded"].finish_reason == "silence"
    assert said["unguarded"].text == said["ungated"].text == "hello"
    assert len(plain.engine.heard) == 2


def test_an_empty_text_says_why_words_may_be_missing(scripted, gate):
    clip = load_audio(CLIPS[0])
    plain = scripted("", "")

    def warnings(samples):
        transcriber = replace(plain, speech_gate=gate)
        transcript = transcriber.transcribe(samples)
        assert transcript.text == "" and transcript.to_json()["warnings"] == list(transcript.warnings)
        return " ".join(transcript.warnings)

    assert "very quiet" in warnings(1e-4 * clip)
    assert "no words came of it" in warnings(clip)
    assert "too short" in warnings(clip[:800])
    assert warnings(np.zeros(32_000, np.float32)) == ""
    assert warnings(np.random.default_rng(0).normal(0, 0.05, 32_000)) == ""


def test_words_behind_a_long_pause_are_an_utterance_of_their_own(scripted, gate):
    clip = load_audio(CLIPS[0])
    plain = scripted("go forward", "and stop")
    transcriber = replace(plain, speech_gate=gate)
    pause = np.zeros(48_000, np.float32)
    transcript = transcriber.transcribe(np.concatenate([pause, clip, pause, clip, pause]))
    assert transcript.text == "go forward and stop" and len(plain.engine.heard) == 2
    assert transcript.segments[0].finish_reason == "silence" and not transcript.warnings
    assert transcript.segments[-1].t1 == (2 * len(clip) + 3 * 48_000) / 16_000


def test_words_of_the_faintest_audio_are_doubted():
    assert "words may be wrong" in doubts(2.0, 10 ** (-56 / 20), heard=True, words=True)[0]
    assert doubts(2.0, 10 ** (-54 / 20), heard=True, words=True) == ()
