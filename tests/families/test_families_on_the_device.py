"""Every family's bundle does on the device what the reference's does, on every engine: live, served, held to phrases, in a language."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import wave
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient
from tiny_families import FAMILY_NAMES, write_tiny

from prunella.cli import main
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.bundle import Buckets, Bundle
from prunella.device_runtime.decoding.answer import AnswerReader, opening_of
from prunella.device_runtime.decoding.phrase_grammar import parse_phrases
from prunella.device_runtime.engines.onnx_engine import OnnxEngine
from prunella.device_runtime.live.session import LiveSession
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.serve import phrases_of_requests
from prunella.device_runtime.servers.http_api import create_app
from prunella.device_runtime.servers.service import TranscriptionService
from prunella.export.export import export_float
from prunella.speech_llm import load
from prunella.targets.profile import TargetProfile

pytestmark = pytest.mark.slow
LLAMA = importlib.util.find_spec("llama_cpp") is not None
RECIPE = "fp32+F32" if LLAMA else "fp32"
TARGET = TargetProfile(
    "tests", "for tests", ("onnx", "gguf") if LLAMA else ("onnx",), RECIPE, (RECIPE,), threads=1
)  # fmt: skip
ENGINES = ["onnx", pytest.param("gguf", marks=[pytest.mark.native, pytest.mark.skipif(not LLAMA, reason="llama-cpp-python is not installed")])]  # fmt: skip


def loud(frame: np.ndarray) -> float:
    return float(np.abs(frame).max() > 0.05)


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Each is made once, in whatever order tests come."""
    folder, made = tmp_path_factory.mktemp("device"), {}

    def bundle(family):
        if family not in made:
            model = load(write_tiny(family, folder / "models" / family))
            made[family] = export_float(model, TARGET, folder / family, recipe=RECIPE)
        return made[family]

    return bundle


@pytest.fixture(params=FAMILY_NAMES)
def bundle(request, bundles):
    return bundles(request.param)


@pytest.fixture(params=ENGINES)
def transcriber(request, bundle):
    return open_transcriber(bundle.path, engine=request.param, threads=1).with_options(guards=False)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_stream_grows_into_the_transcript(transcriber, beams):
    transcriber = transcriber.with_options(beams=beams)
    transcriber.warm_up()
    samples = noise(1.2)
    whole = transcriber.transcribe(samples)
    steps, seen = transcriber.stream(samples), []
    with pytest.raises(StopIteration) as done:
        while True:
            seen.append(next(steps))
    assert done.value.value.tokens == whole.tokens and done.value.value.text == whole.text
    assert all(after.startswith(before) for before, after in itertools.pairwise(seen))
    assert beams > 1 or len(whole.tokens) > 1
    assert not {*whole.tokens} & {*transcriber.prompt.eos_ids}
    drafted = transcriber.transcribe(samples, draft=whole.tokens)
    assert beams > 1 or drafted.tokens == whole.tokens
    json.dumps(whole.to_json())


def test_the_longest_audio_has_room(transcriber):
    """A cache that grows would be copied, one that cannot is an error."""
    engine = transcriber.engine
    before = getattr(engine, "capacity", None)
    segment = transcriber.transcribe(noise(29.4)).segments[0]
    assert segment.audio_tokens <= transcriber.audio.longest_tokens(transcriber.audio.max_seconds)
    engine.start(engine.encode(noise(29.4)))
    longest = max((one.ids for one in transcriber.prompt.languages), key=len, default=())
    engine.extend([*longest, *[9] * transcriber.options.token_cap(29.4)])
    assert getattr(engine, "capacity", None) == before


@pytest.mark.parametrize("family", ["qwen3_asr", "qwen2_audio"])
def test_lengths_filled_up_to_buckets_give_the_same(bundles, family):
    """For providers that plan anew for every length; an encoder that is not told where the audio ends keeps its own."""
    whole = bundles(family)
    inside = replace(whole.manifest, buckets=Buckets(encoder_frames=200, prefill=16))
    plain, filled = OnnxEngine.open(whole, threads=1), OnnxEngine.open(Bundle(whole.path, inside), threads=1)
    lengths, run = [], filled.encoder.session.run

    class Recorded:
        def run(self, outputs, inputs, *options):
            lengths.append(inputs["log_mel"].shape[2])
            return run(outputs, inputs, *options)

    filled.encoder.session = Recorded()
    for seconds in (0.7, 1.2, 3.1):
        expected = plain.encode(noise(seconds))
        found = filled.encode(noise(seconds))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        for one in (plain, filled):
            one.begin = [one.start(expected).copy(), one.step(5).copy(), one.extend([7, 8, 9]).copy()]
            one.rewind(2)
            one.begin += [one.extend([3, 4]).copy(), one.step_beams([6, 7], [0, 0]).copy()]
        for ours, theirs in zip(filled.begin, plain.begin, strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert len(lengths) == 3 and all(length % 200 == 0 for length in lengths)
    untold = replace(whole.manifest.audio.features, valid="all")
    untold_audio = replace(whole.manifest.audio, features=untold)
    alone = OnnxEngine.open(Bundle(whole.path, replace(inside, audio=untold_audio)), threads=1)
    assert alone.encoder.missing_frames(300) == 0  # the graph would take them for the audio's


def test_a_language_reaches_the_prompt(transcriber):
    prompt, engine = transcriber.prompt, transcriber.engine
    if not prompt.languages:
        with pytest.raises(UsageError, match="takes no language"):
            transcriber.with_language("de")
        return
    german = transcriber.with_language("de")
    found = german.transcribe(noise(1.2))
    after = german.prompt.after_ids
    (told,) = (one.ids for one in prompt.languages if one.code == "de")
    assert len(after) == len(prompt.after_ids) + len(told)
    assert told in [after[start : start + len(told)] for start in range(len(after))]
    logits = engine.start(engine.encode(noise(1.2)), after)
    said = [int(np.argmax(logits))]
    while len(said) < len(found.tokens):
        said.append(int(np.argmax(engine.step(said[-1]))))
    assert tuple(said) == found.tokens and found.language == "de"
    assert found.tokens != transcriber.transcribe(noise(1.2)).tokens
    with pytest.raises(UsageError, match="German"):
        transcriber.with_language("tlh")


def test_phrases_are_all_that_is_said(transcriber):
    held = transcriber.with_phrases(parse_phrases("go on\nstop"), min_score=0.0)
    found = held.transcribe(noise(1.2))
    assert found.text in ("go on", "stop") and found.finish_reason == "phrase"
    assert found.language == ("en" if transcriber.prompt.answer == "language-tag" else None)


def test_an_answer_is_scored_as_the_model_says_it(transcriber):
    loss, count = transcriber.score(noise(1.2), "go on")
    kind = AnswerReader.of(transcriber.prompt).answer
    assert np.isfinite(loss) and count > len(opening_of(kind)) - 10 * (kind == "language-tag")


def test_live_and_served_it_says_what_it_says_of_a_file(transcriber):
    silence = np.zeros(32_000, np.float32)
    samples = np.concatenate([silence, noise(1.2), silence])
    events = []
    with LiveSession(transcriber, events.append, vad=loud) as session:
        session.feed(samples)
    spoken = [event for event in events if event.utterance_id is not None]
    assert spoken[-1].type in ("final", "silence") and {event.type for event in spoken[:-1]} <= {"partial"}
    languages = transcriber.prompt.languages
    service = TranscriptionService(
        transcriber, "tiny", "" if languages else "en", make_vad=lambda: loud, languages=languages,
        with_language=(lambda one, code: one.with_language(code)) if languages else None,
        with_phrases=phrases_of_requests(transcriber, 0.0),
    )  # fmt: skip
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="PCM_16")
    client = TestClient(create_app(service), base_url="http://localhost:8000")

    def post(**fields):
        return client.post(
            "/v1/audio/transcriptions", files={"file": ("a.wav", file.getvalue())}, data=fields
        )

    assert post().status_code == 200
    assert post(stream="true").text.count("transcript.text.done") == 1
    told = post(language="German", phrases="go on").json()
    assert told["text"] == "go on" and told["language"] == ("de" if languages else "en")
    assert post(language="Klingon").status_code == (400 if languages else 200)
    assert len(client.get("/v1/models/tiny").json()["languages"]) == len(languages)


def test_the_command_line_takes_it(bundle, tmp_path, capsys):
    path = tmp_path / "noise.wav"
    soundfile.write(path, noise(1.2), 16_000)
    words = ["transcribe", str(bundle.path), str(path), "--no-guards", "--beams", "1"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] > 0
    languages = bundle.manifest.prompt.languages
    assert main([*words, "--language", "german", "--json"]) == (0 if languages else 2)
    out, err = capsys.readouterr()
    assert json.loads(out)["language"] == "de" if languages else "takes no language" in err
    assert main([*words, "--language", "tlh"]) == 2
    assert main(["info", str(bundle.path)]) == 0
    told = capsys.readouterr().out
    assert f"{bundle.manifest.audio.features.num_mel_bins} bins" in told and (
        "de, " in told if languages else "takes none" in told
    )


def test_a_pipe_is_listened_to(bundle, capsys, monkeypatch):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes((noise(1.0) * 32_767).astype("<i2").tobytes())
    file.seek(0)
    monkeypatch.setattr("prunella.device_runtime.listen.piped", lambda: file)
    asked = ["--language", "de"] if bundle.manifest.prompt.languages else []
    assert main(["listen", str(bundle.path), "-", "--json", *asked]) == 0
    assert all("type" in json.loads(line) for line in capsys.readouterr().out.splitlines())
