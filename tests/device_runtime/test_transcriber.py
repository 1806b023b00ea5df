"""The greedy loop, its limits and guards, over an engine that says what it is told."""

from __future__ import annotations

import itertools
import json
import random
import string
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from prunella.device_runtime.base.errors import AudioError, BundleError, EngineError, UsageError
from prunella.device_runtime.bundle import open_bundle
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.transcript import DecodeOptions


def test_says_what_the_engine_says(scripted, tone):
    transcriber = scripted("go forward ten meters")
    transcript = transcriber.transcribe(tone)
    assert transcript.text == "go forward ten meters"
    assert transcript.finish_reason == "eos"
    assert transcript.engine == "scripted"
    (segment,) = transcript.segments
    assert (segment.t0, segment.t1, segment.audio_tokens) == (0.0, 2.0, 21)
    # Every token but the one that ends the text is fed back once, in order.
    assert tuple(transcriber.engine.steps) == segment.tokens == transcript.tokens
    timings = transcript.timings
    assert timings.audio == 2.0
    assert timings.total == pytest.approx(timings.encode + timings.prefill + timings.decode)
    assert 0 < timings.first_token <= timings.total
    assert timings.real_time_factor == pytest.approx(timings.total / 2.0)
    json.dumps(transcript.to_json(), allow_nan=False)


@pytest.mark.parametrize("guards", [True, False])
def test_the_cap_is_audio_tokens_and_ten_more(scripted, tokenizer, guards):
    letters = [
        tokenizer.encode(letter).ids[0] for letter in random.Random(0).choices(string.ascii_lowercase, k=400)
    ]
    for length in (1_600, 1_601, 4_799, 160_000, 16_000 * 29):
        transcriber = scripted(letters, options=DecodeOptions(guards=guards))
        transcript = transcriber.transcribe(np.full(length, 0.5, np.float32))
        audio_tokens = -(-length // 1_600) + 1
        assert transcript.segments[0].audio_tokens == audio_tokens
        assert len(transcript.tokens) == audio_tokens + 10
        assert transcript.finish_reason == "length"
        assert len(transcriber.engine.steps) == audio_tokens + 9, "a step whose logits nobody reads"


def test_every_length_of_audio_gives_the_same_cap_in_seconds_as_in_tokens():
    assert [DecodeOptions().token_cap(n * 1_600 / 16_000) for n in range(1, 301)] == [
        n + 10 for n in range(1, 301)
    ]


def test_a_loop_stops_the_decoder(scripted, tone):
    looping = "stop and go stop and go stop and go stop and go stop and go "
    transcriber = scripted(looping)
    transcript = transcriber.transcribe(tone)
    assert transcript.text == "stop and go"
    assert transcript.finish_reason == "repeat"
    assert len(transcriber.engine.steps) < len(transcriber.tokenizer.encode(looping).ids)


def test_a_loop_that_the_decoder_ends_itself_is_cut_too(scripted, tone):
    transcript = scripted("go go go go go go").transcribe(tone)
    assert (transcript.text, transcript.finish_reason) == ("go", "repeat")


def test_guards_can_be_turned_off_or_tuned(scripted, tone):
    off = DecodeOptions(guards=False)
    assert scripted("go go go go go go", options=off).transcribe(tone).text == "go go go go go go"
    assert scripted("go", options=off).transcribe(tone * 0).text == "go"
    assert (
        scripted("go go go go go go", options=DecodeOptions(repeat_times=7)).transcribe(tone).text
        == "go go go go go go"
    )


def test_silence_never_reaches_the_engine(scripted):
    transcriber = scripted()
    transcript = transcriber.transcribe(np.full(32_000, 1e-5, np.float32))
    assert (transcript.text, transcript.finish_reason, transcript.tokens) == ("", "silence", ())
    assert transcriber.engine.heard == []
    assert 0 <= transcript.timings.first_token <= transcript.timings.total


def test_warming_up_goes_through_the_engine_though_the_gate_hears_no_speech(scripted, tone):
    class NoSpeech:
        def hears_speech(self, samples, probability):
            return False

        def listener(self, probability):
            return lambda frames: np.zeros(len(frames), bool)

    transcriber = replace(scripted("anything", "tone"), speech_gate=NoSpeech())
    transcriber.engine.rewind = lambda count: None
    transcriber.engine.scripts[0] = transcriber.engine.scripts[0] * 40
    transcriber.warm_up(2.0)
    assert transcriber.engine.heard == [32_000]
    assert len(transcriber.engine.steps) > 20  # several verified at once, and one alone
    assert transcriber.transcribe(tone).text == ""


def test_special_tokens_and_their_remnants_are_no_text(scripted, tokenizer, tone):
    ids = [1, *tokenizer.encode("go").ids, 0, *tokenizer.encode(" on").ids]
    spelled = [token for char in "<|im_x|>" for token in tokenizer.encode(char).ids]
    assert scripted([*ids, *spelled]).transcribe(tone).text == "go on"


def test_characters_of_several_tokens_stay_whole(scripted, tone):
    transcriber = scripted("crème brûlée für zwei 🎉")
    seen = list(transcriber.stream(tone))
    assert seen[-1] == "crème brûlée für zwei 🎉"
    assert not any("�" in text for text in seen)


def test_long_audio_is_split_and_joined(scripted):
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.1, 16_000 * 70).astype(np.float32)
    samples[16_000 * 25 : 16_000 * 26] = 0
    samples[16_000 * 48 : 16_000 * 49] = 0
    transcriber = scripted("go forward", "", "and stop")
    transcript = transcriber.transcribe(samples)
    assert transcript.text == "go forward and stop"
    assert sum(transcriber.engine.heard) == len(samples)
    assert transcript.segments[0].t0 == 0.0 and transcript.segments[-1].t1 == 70.0
    assert all(a.t1 == b.t0 for a, b in itertools.pairwise(transcript.segments))
    assert transcript.timings.audio == pytest.approx(70.0)
    assert transcript.timings.first_token == transcript.segments[0].timings.first_token


def test_a_stream_grows_and_ends_in_the_transcript(scripted, tone):
    transcriber = scripted("go forward ten meters")
    stream, seen = transcriber.stream(tone), []
    with pytest.raises(StopIteration) as done:
        while True:
            seen.append(next(stream))
    assert done.value.value.text == seen[-1] == "go forward ten meters"
    assert all(after.startswith(before) for before, after in itertools.pairwise(seen))
    assert len(seen) > 3


@pytest.mark.parametrize("samples", [np.zeros(0), np.full(1_600, np.nan), np.zeros((2, 3_200))])
def test_unusable_audio_is_refused(scripted, samples):
    with pytest.raises(AudioError):
        scripted("go").transcribe(samples)


def test_score_counts_the_end_token(scripted, tokenizer, tone):
    transcriber = scripted("")
    loss, count = transcriber.score(tone, "go forward")
    assert transcriber.engine.scored == [*tokenizer.encode("go forward").ids, transcriber.prompt.eos_ids[0]]
    assert count == len(transcriber.engine.scored)
    assert loss == pytest.approx(0.5 * count)
    with pytest.raises(AudioError, match=r"29\.5"):
        transcriber.score(np.ones(16_000 * 30), "go")


@pytest.fixture
def fake_onnx(monkeypatch):
    """Stands in for the ONNX engine's module, which needs onnxruntime and real graphs."""
    opened = []

    class OnnxEngine:
        name = "onnx-fake"

        @classmethod
        def open(cls, bundle, *, threads):
            opened.append((bundle, threads))
            return cls()

        def token_embeddings(self, tokens):
            return None

    module = types.ModuleType("prunella.device_runtime.engines.onnx_engine")
    module.OnnxEngine = OnnxEngine
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return opened


def test_a_bundle_is_opened_with_its_own_settings(write_bundle, fake_onnx):
    folder = write_bundle(threads=3, decode=DecodeOptions(repeat_times=5))
    transcriber = open_transcriber(folder)
    assert transcriber.options.repeat_times == 5
    assert transcriber.tokenizer.decode(transcriber.tokenizer.encode("go on").ids) == "go on"
    bundle, threads = fake_onnx[0]
    assert threads is None and bundle.manifest.threads == 3
    open_transcriber(folder, engine="onnx", threads=1, options=DecodeOptions())
    assert fake_onnx[1][1] == 1


def test_what_cannot_be_opened_is_said(write_bundle, fake_onnx):
    folder = write_bundle()
    with pytest.raises(UsageError, match="onnx"):
        open_transcriber(folder, engine="tensorrt")
    with pytest.raises(UsageError, match="threads"):
        open_transcriber(folder, threads=-1)
    with pytest.raises(EngineError, match="gguf"):
        open_transcriber(write_bundle("gguf-only", engines=("gguf",)), engine="onnx")
    bare = write_bundle("bare")
    manifest = open_bundle(bare).manifest
    files = {name: entry for name, entry in manifest.files.items() if name != "tokenizer.json"}
    (bare / "bundle.json").write_text(replace(manifest, files=files).dumps())
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        open_transcriber(bare)
    assert fake_onnx == []
