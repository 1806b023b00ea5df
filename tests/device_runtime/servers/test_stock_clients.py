"""`prunella serve` with the real reference as a process, asked by the stock clients of OpenAI and Wyoming."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile
from served import free_ports, there
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def serving(*words: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """The process, once it says that it is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prunella", "serve", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    with there(process):
        yield process


@pytest.fixture(scope="module")
def server(reference_bundle) -> Iterator[tuple[int, int]]:
    http, wyoming = free_ports(2)
    words = [str(reference_bundle), "--port", str(http), "--wyoming", str(wyoming), "--threads", "1"]
    with serving(*words) as process:
        yield http, wyoming
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert process.stdout.read() == ""
        assert "Traceback" not in process.stderr.read()


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server[0]}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def clip() -> Path:
    return Path(__file__).parents[3] / "examples" / "clips" / "evaluation" / "goforward.flac"


def test_the_openai_package_gets_every_format(client, clip):
    (model,) = client.models.list().data
    with clip.open("rb") as file:
        plain = client.audio.transcriptions.create(model="whisper-1", file=file)
    assert plain.text.startswith("go")
    assert plain.model == model.id
    with clip.open("rb") as file:
        verbose = client.audio.transcriptions.create(
            model=model.id, file=file, response_format="verbose_json", timestamp_granularities=["segment"]
        )
    assert verbose.text == plain.text
    assert verbose.duration == pytest.approx(2.786, abs=0.01)
    (segment,) = verbose.segments
    assert 0 <= segment.start < segment.end <= verbose.duration
    for form, mark in (("text", plain.text), ("srt", "00:00:0"), ("vtt", "WEBVTT")):
        with clip.open("rb") as file:
            text = client.audio.transcriptions.create(model=model.id, file=file, response_format=form)
        assert mark in text and plain.text in text
    with clip.open("rb") as file:
        events = list(client.audio.transcriptions.create(model=model.id, file=file, stream=True))
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == "".join(event.delta for event in events[:-1]) == plain.text


def test_the_openai_package_reads_the_errors(client):
    with pytest.raises(openai.BadRequestError, match="not audio"):
        client.audio.transcriptions.create(model="m", file=("a.wav", b"not audio"))
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.models.retrieve("gpt-4o-transcribe")


def test_phrases_hold_the_model_to_a_list(client, clip):
    body = {"phrases": "go: go forward {number} (meters | minutes)\nturn (left | right)"}
    with clip.open("rb") as file:
        answer = client.audio.transcriptions.create(model="m", file=file, extra_body=body)
    if (
        answer.text
    ):  # the reference hears the unit wrong now and then; what it says is on the list all the same
        assert answer.phrases[0]["label"] == "go" and answer.text.startswith("go forward")
    with clip.open("rb") as file:
        other = client.audio.transcriptions.create(
            model="m", file=file, extra_body={"phrases": "close the window"}
        )
    assert other.text == ""


def test_the_wyoming_package_gets_what_openai_gets(server, client, clip):
    samples, rate = soundfile.read(clip, dtype="int16")

    async def ask() -> str:
        async with AsyncTcpClient("127.0.0.1", server[1]) as wyoming:
            await wyoming.write_event(Transcribe(language="en").event())
            await wyoming.write_event(AudioStart(rate, 2, 1).event())
            for block in np.array_split(samples, 20):
                await wyoming.write_event(AudioChunk(rate, 2, 1, block.tobytes()).event())
            await wyoming.write_event(AudioStop().event())
            while not Transcript.is_type((event := await wyoming.read_event()).type):
                pass
            return Transcript.from_event(event).text

    with clip.open("rb") as file:
        assert asyncio.run(ask()) == client.audio.transcriptions.create(model="m", file=file).text


def test_the_text_is_that_of_the_samples_of_the_utterance(client, clip, reference_bundle):
    with clip.open("rb") as file:
        (segment,) = client.audio.transcriptions.create(
            model="m", file=file, response_format="verbose_json"
        ).segments
    samples = load_audio(clip)[round(segment.start * 16_000) : round(segment.end * 16_000)]
    transcriber = open_transcriber(reference_bundle, threads=1).with_options(beams=0)  # as the server does
    assert transcriber.transcribe(samples).text == segment.text


def test_https_with_a_certificate_of_its_own(reference_bundle, tmp_path):
    (port,) = free_ports(1)
    words = [str(reference_bundle), "--port", str(port), "--tls", "--threads", "1"]
    with serving(*words, environment={"PRUNELLA_CACHE": str(tmp_path)}):
        certificate = tmp_path / "tls" / "certificate.pem"
        if os.name == "posix":
            assert (tmp_path / "tls" / "key.pem").stat().st_mode & 0o077 == 0
        context = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(f"https://localhost:{port}/health", context=context) as answer:
            assert answer.status == 200


def test_a_port_that_is_taken_is_named(reference_bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "prunella", "serve", str(reference_bundle), "--port", port],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stopped_server_still_sends_what_was_said(reference_bundle, clip):
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    (port,) = free_ports(1)
    samples = load_audio(clip)
    with serving(str(reference_bundle), "--port", str(port), "--threads", "1") as process:
        with connect(f"ws://127.0.0.1:{port}/v1/live") as socket:
            socket.send(json.dumps({"type": "start", "sample_rate": 16_000}))
            assert json.loads(socket.recv(20))["type"] == "ready"
            socket.send((samples * 32_767).astype("<i2").tobytes())
            events = [json.loads(socket.recv(20))]  # a partial text: the audio has been read
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as ended:
                while True:
                    events.append(json.loads(socket.recv(20)))
        assert ended.value.rcvd.code == 1012
        assert process.wait(20) in (0, -signal.SIGTERM)
    (final,) = [event for event in events if event["type"] == "final"]
    assert final["text"].startswith("go")
    assert events[-1]["type"] == "done"
