"""The language that a client names: what reaches the recognizer, what is said of it, what is refused in words."""

from __future__ import annotations

import asyncio
import io
import json

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient
from wyoming.asr import Transcribe, Transcript, TranscriptStart
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.info import Describe, Info

from prunella.device_runtime.bundle import Language
from prunella.device_runtime.servers.http_api import create_app
from prunella.device_runtime.servers.service import Limits, TranscriptionService
from prunella.device_runtime.servers.wyoming_server import start_wyoming
from prunella.device_runtime.transcript import Segment, Timings
from prunella.device_runtime.transcript import Transcript as Text

URL = "/v1/audio/transcriptions"
LIVE = "ws://localhost/v1/live"
LANGUAGES = (
    Language("en", "English", "", ()),
    Language("de", "German", "", ()),
    Language("yue", "Cantonese", "", ()),
)


def loud(frame: np.ndarray) -> float:
    return float(np.abs(frame).max() > 0.05)


def speech(seconds: float) -> np.ndarray:
    """A tone between silences of two seconds."""
    quiet = np.zeros(32_000, np.float32)
    tone = 0.3 * np.sin(np.arange(int(seconds * 16_000)) / 5).astype(np.float32)
    return np.concatenate([quiet, tone, quiet])


def post(client: TestClient, **fields):
    file = io.BytesIO()
    soundfile.write(file, speech(1.0), 16_000, format="WAV", subtype="PCM_16")
    return client.post(URL, files={"file": ("speech.wav", file.getvalue())}, data=fields)


class Told:
    """Says which language it was told; of itself it finds out that French is spoken."""

    def __init__(self, language: str = "", word: str = "said") -> None:
        self.language, self.word = language, word

    def stream(self, samples, *, draft=()):
        text = f"{self.word} in {self.language or 'a language'}"
        yield text
        seconds = len(samples) / 16_000
        segment = Segment(
            0.0, seconds, text, (1,), 5, "eos", Timings(audio=seconds), language=self.language or "fr"
        )
        return Text(text, (segment,), segment.timings)

    def with_language(self, language: str) -> Told:
        return Told(language, self.word)


class Plain:
    """A recognizer that is told nothing."""

    def stream(self, samples, *, draft=()):
        yield "said"
        return Text("said")


def service_of(language: str = "") -> TranscriptionService:
    return TranscriptionService(
        Told(language), "tiny", language, Limits(), make_vad=lambda: loud, languages=LANGUAGES, live=Told(language, "live"),
        partials=Told(language, "quick"), with_phrases=lambda text: Told(language, text),
        with_language=lambda recognizer, code: recognizer.with_language(code),
    )  # fmt: skip


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(service_of()), base_url="http://localhost:8000")


@pytest.mark.parametrize(
    ("asked", "text", "language"),
    [
        (None, "said in a language", "fr"),
        ("auto", "said in a language", "fr"),
        ("de", "said in de", "de"),
        ("de-AT", "said in de", "de"),
        ("German", "said in de", "de"),
        ("YUE", "said in yue", "yue"),
    ],
)
def test_a_requests_language_reaches_the_recognizer(client, asked, text, language):
    fields = {} if asked is None else {"language": asked}
    for form in ("json", "verbose_json"):
        body = post(client, response_format=form, **fields).json()
        assert (body["text"], body["language"]) == (text, language)
        assert "warnings" not in body
    assert body["segments"][0]["language"] == language
    done = json.loads(post(client, stream="true", **fields).text.split("\n\n")[-2][6:])
    assert (done["text"], done["language"]) == (text, language)


def test_a_requests_language_goes_before_the_servers():
    client = TestClient(create_app(service_of("de")), base_url="http://localhost:8000")
    assert post(client).json()["text"] == "said in de"
    assert post(client, language="en").json()["text"] == "said in en"
    assert post(client, language="auto").json()["text"] == "said in a language"
    assert post(client, language="en", phrases="go").json()["text"] == "go in en"


def test_a_language_that_the_model_does_not_take_is_refused_with_those_that_it_takes(client):
    answer = post(client, language="tlh")
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "'tlh'" in message and "de (German)" in message and "yue (Cantonese)" in message


def test_a_model_without_languages_takes_what_it_always_took():
    service = TranscriptionService(Plain(), "tiny", "en", Limits(), make_vad=lambda: loud)
    client = TestClient(create_app(service), base_url="http://localhost:8000")
    assert post(client, language="tlh").status_code == 200
    assert client.get("/v1/models/tiny").json()["languages"] == []
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "language": 5})
        assert socket.receive_json() == {"type": "ready", "model": "tiny", "language": "en"}


def test_the_model_lists_its_languages(client):
    model = client.get("/v1/models/tiny").json()
    assert {"code": "de", "name": "German"} in model["languages"] and len(model["languages"]) == 3
    assert model["language"] == ""


def talked(client: TestClient, **start) -> list[dict]:
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", **start})
        events = [socket.receive_json()]
        if events[0]["type"] == "error":
            return events
        socket.send_bytes((speech(3.0) * 32_767).astype("<i2").tobytes())
        socket.send_json({"type": "stop"})
        while events[-1]["type"] != "done":
            events.append(socket.receive_json())
    return events


def test_a_live_session_keeps_its_language(client):
    ready, *events, _ = talked(client, language="German")
    assert ready["language"] == "de"
    final = next(event for event in events if event["type"] == "final")
    assert (final["text"], final["language"]) == ("live in de", "de")
    partials = [event["text"] for event in events if event["type"] == "partial"]
    assert set(partials) <= {"quick in de", "live in de"}
    ready, *events, _ = talked(client)
    assert ready["language"] == ""
    assert next(event for event in events if event["type"] == "final")["language"] == "fr"
    _, *events, _ = talked(client, language="en", phrases="go")
    assert next(event for event in events if event["type"] == "final")["text"] == "go in en"


@pytest.mark.parametrize("language", ["tlh", 5, ["de"]])
def test_a_live_session_in_no_language_is_refused(client, language):
    (error,) = talked(client, language=language)
    assert error["type"] == "error" and "language" in error["message"]


def test_wyoming_says_which_languages_there_are_and_takes_them():
    async def ask(client: AsyncTcpClient, language: str | None) -> list:
        await client.write_event(Transcribe(language=language).event())
        await client.write_event(AudioStart(16_000, 2, 1).event())
        samples = (speech(1.0) * 32_767).astype("<i2")
        await client.write_event(AudioChunk(16_000, 2, 1, samples.tobytes()).event())
        await client.write_event(AudioStop().event())
        events = []
        while not events or events[-1].type not in ("transcript-stop", "error"):
            events.append(await client.read_event())
        return events

    def heard(events: list) -> tuple:
        start = next(
            TranscriptStart.from_event(event) for event in events if TranscriptStart.is_type(event.type)
        )
        answer = next(Transcript.from_event(event) for event in events if Transcript.is_type(event.type))
        return start.language, answer.language, answer.text

    async def talk() -> None:
        server = await start_wyoming(service_of(), "127.0.0.1", 0)
        try:
            async with AsyncTcpClient("127.0.0.1", server.port) as client:
                await client.write_event(Describe().event())
                info = Info.from_event(await client.read_event())
                assert info.asr[0].models[0].languages == ["en", "de", "yue"]
                assert heard(await ask(client, "de")) == ("de", "de", "said in de")
                # It was of that utterance alone.
                assert heard(await ask(client, None)) == (None, "fr", "said in a language")
            async with AsyncTcpClient("127.0.0.1", server.port) as client:
                await client.write_event(Transcribe(language="tlh").event())
                assert "tlh" in Error.from_event(await client.read_event()).text
        finally:
            await server.stop()

    asyncio.run(asyncio.wait_for(talk(), 30))
