"""The HTTP server and the live socket, over a recognizer whose answers follow from the samples."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.decoding.phrase_grammar import parse_phrases
from prunella.device_runtime.servers.access import Access
from prunella.device_runtime.servers.http_api import create_app
from prunella.device_runtime.servers.model_summary import ModelSummary
from prunella.device_runtime.servers.service import CancelledError, Limits, TranscriptionService
from prunella.device_runtime.servers.turns import Turns
from prunella.device_runtime.sound.audio import open_audio
from prunella.device_runtime.transcript import Segment, Timings, Transcript

URL = "/v1/audio/transcriptions"
LIVE = "ws://localhost/v1/live"
FEW = Limits(upload_bytes=400_000, seconds=20.0, requests=3, requests_per_client=2, live=1, idle_seconds=5.0)


def loud(frame: np.ndarray) -> float:
    return float(np.abs(frame).max() > 0.05)


class Counting:
    """Says how many tenths of a second it heard, word by word; waits for `go` when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.heard: list[np.ndarray] = []
        self.closed = 0

    def stream(self, samples, *, draft=()):
        self.heard.append(samples)
        text = ""
        try:
            for word in ("heard", str(round(len(samples) / 1_600)), "tenths"):
                text = f"{text} {word}".strip()
                yield text
                assert self.go.wait(20)
        except GeneratorExit:
            self.closed += 1
            raise
        seconds = len(samples) / 16_000
        segment = Segment(0.0, seconds, text, (1, 2, 3), 5, "eos", Timings(audio=seconds, total=0.1))
        return Transcript(text, (segment,), segment.timings, "counting")


@pytest.fixture
def recognizer() -> Counting:
    return Counting()


@pytest.fixture
def service(recognizer) -> TranscriptionService:
    return TranscriptionService(recognizer, "tiny", "en", FEW, make_vad=lambda: loud)


@pytest.fixture
def client(service) -> TestClient:
    return TestClient(create_app(service), base_url="http://localhost:8000")


def test_microphones_and_recordings_may_have_recognizers_of_their_own(service, recognizer):
    assert service.choose(None, live=True) is service.choose(None) is recognizer
    service = replace(service, live=Counting())
    assert service.choose(None, live=True) is service.live
    assert service.choose(" ") is recognizer


def speech(*seconds: float, gap: float = 2.0) -> np.ndarray:
    """Tones of the given lengths with silence around each."""
    quiet = np.zeros(int(gap * 16_000), np.float32)
    parts = [quiet]
    for length in seconds:
        parts += [0.3 * np.sin(np.arange(int(length * 16_000)) / 5).astype(np.float32), quiet]
    return np.concatenate(parts)


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def streamed(samples: np.ndarray) -> tuple[dict, bytes]:
    """Scope and body of a request for a stream."""
    part = '--b\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    body = part.format("stream").encode() + b"true\r\n"
    body += part.format('file"; filename="a.wav').encode() + wav(samples) + b"\r\n--b--\r\n"
    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=b")]
    return {"type": "http", "method": "POST", "path": URL, "query_string": b"", "headers": headers}, body


def post(client: TestClient, content: bytes, **fields):
    return client.post(URL, files={"file": ("speech.wav", content)}, data=fields)


def test_json_names_the_model_that_answered(client):
    answer = post(client, wav(speech(1.0)), model="whisper-1", language="de", prompt="be nice")
    assert answer.status_code == 200
    body = answer.json()
    assert body["text"] == "heard 20 tenths"
    assert (body["model"], body["language"]) == ("tiny", "en")
    assert body["usage"] == {"type": "duration", "seconds": 5.0}
    assert [
        word for note in body["warnings"] for word in ("'de'", "'whisper-1'", "prompt") if word in note
    ] == [
        "'de'",
        "'whisper-1'",
        "prompt",
    ]
    assert "warnings" not in post(client, wav(speech(1.0)), model="tiny", language="en-GB").json()


@pytest.mark.parametrize("spelling", ["timestamp_granularities", "timestamp_granularities[]"])
@pytest.mark.parametrize(
    "value", ["word", ["word", "segment"], "word,segment", '["word"]', ["segment", "Word"]]
)
def test_times_of_words_are_warned_of_and_the_segments_served(client, spelling, value):
    content = wav(speech(1.0))
    body = post(client, content, response_format="verbose_json", **{spelling: value}).json()
    assert [segment["text"] for segment in body["segments"]] == ["heard 20 tenths"]
    assert ["no times of words" in note for note in body["warnings"]] == [True]
    assert (
        "no times of words"
        in post(client, content, response_format="srt", **{spelling: value}).headers["prunella-warning"]
    )
    segments = {spelling: "segment", "response_format": "verbose_json"}
    assert "warnings" not in post(client, content, **segments).json()
    (note,) = post(client, content, **{spelling: "segment"}).json()["warnings"]
    assert "verbose_json" in note


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"language": "english"}, []),
        ({"language": "English"}, []),
        ({"language": "auto"}, []),
        ({"language": "en_US"}, []),
        ({"language": "german"}, ["'german'"]),
        ({"language": "enlightened"}, ["'enlightened'"]),
        ({"temperature": "0"}, []),
        ({"temperature": "0.0"}, []),
        ({"temperature": "0.4"}, ["'0.4'"]),
        ({"temperature": "hot"}, ["'hot'"]),
        ({"prompt": "be nice", "temperature": "1"}, ["prompt", "temperature"]),
        ({"chunking_strategy": "auto", "include[]": ["logprobs", "x"]}, ["'chunking_strategy', 'include[]'"]),
        ({"ünknown\n": "x"}, ["not known"]),
    ],
)
def test_what_of_a_request_is_not_followed_is_said(client, fields, words):
    content = wav(speech(1.0))
    answer = post(client, content, **fields)
    assert answer.status_code == 200
    notes = answer.json().get("warnings", [])
    assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes, strict=True))
    text = post(client, content, response_format="text", **fields)
    assert text.headers.get("prunella-warning", "").isascii()
    assert bool(text.headers.get("prunella-warning")) == bool(words)
    events = post(client, content, stream="true", **fields).text.split("\n\n")
    assert json.loads(events[-2][6:]).get("warnings", []) == notes


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/audio/translations", 404, "translates nothing"),
        ("POST", "/audio/transcriptions", 404, "/v1"),
        ("POST", "/v1/v1/audio/transcriptions", 404, "base URL"),
        ("GET", "/models", 404, "base URL"),
        ("GET", "/inference", 404, URL),
        ("GET", URL, 405, "send POST"),
        ("POST", "/v1/models", 405, "send GET"),
    ],
)
def test_a_wrong_address_is_answered_with_the_right_one(client, method, path, status, words):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_every_utterance_is_a_segment(client, recognizer):
    content = wav(speech(1.0, 2.0))
    body = post(client, content, response_format="verbose_json").json()
    first, second = body["segments"]
    assert body["text"] == f"{first['text']} {second['text']}"
    assert body["duration"] == 9.0
    assert first["start"] == pytest.approx(1.5, abs=0.1) and first["end"] == pytest.approx(3.5, abs=0.1)
    assert second["start"] == pytest.approx(4.5, abs=0.1) and second["end"] == pytest.approx(7.5, abs=0.1)
    assert first["tokens"] == [1, 2, 3]

    srt = post(client, content, response_format="srt").text.split("\n\n")
    assert srt[0].split("\n")[0] == "1" and srt[1].split("\n")[0] == "2"
    begin, end = srt[0].split("\n")[1].split(" --> ")
    assert begin.startswith("00:00:01,") and end.startswith("00:00:03,")
    vtt = post(client, content, response_format="vtt")
    assert vtt.headers["content-type"].startswith("text/vtt")
    assert vtt.text.startswith("WEBVTT\n\n00:00:01.")
    text = post(client, content, response_format="text")
    assert text.text == body["text"] + "\n"


def test_silence_has_no_text(client, recognizer):
    content = wav(np.zeros(32_000))
    assert post(client, content).json()["text"] == ""
    assert post(client, content, response_format="srt").text == ""
    assert post(client, content, response_format="verbose_json").json()["segments"] == []
    assert recognizer.heard == []


def test_an_empty_text_says_why_words_may_be_missing(client):
    quiet = wav(0.01 * speech(1.0))
    assert "very quiet" in post(client, quiet).json()["warnings"][0]
    assert "very quiet" in post(client, quiet, response_format="text").headers["Prunella-Warning"]
    assert "very quiet" in post(client, quiet, stream="true").text
    assert "warnings" not in post(client, wav(np.zeros(32_000))).json()
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start"})
        assert socket.receive_json()["type"] == "ready"
        socket.send_bytes((0.01 * speech(0.5) * 32_767).astype("<i2").tobytes())
        socket.send_json({"type": "stop"})
        while (message := socket.receive_json())["type"] != "done":
            pass
    assert "very quiet" in message["warnings"][0]


def test_a_stream_appends_and_ends_in_the_text(client):
    answer = post(client, wav(speech(1.0, 1.0)), stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    assert [event["type"] for event in events] == ["transcript.text.delta"] * 6 + ["transcript.text.done"]
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"]
    assert events[-1]["model"] == "tiny"


@pytest.mark.parametrize(
    ("content", "fields", "status", "message"),
    [
        (b"", {}, 400, "empty"),
        (b"RIFF\x00\x00", {}, 400, "ffmpeg"),
        (b"\x00" * 5_000, {}, 400, "ffmpeg"),
        (wav(np.zeros(16_000))[:30], {}, 400, "."),
        (wav(np.zeros(1_600)), {"response_format": "diarized"}, 400, "verbose_json"),
        (
            wav(np.zeros(1_600)),
            {"timestamp_granularities[]": "phoneme"},
            400,
            "'segment' or 'word', not 'phoneme'",
        ),
        (wav(np.zeros(1_600)), {"timestamp_granularities": "word,phoneme"}, 400, "not 'phoneme'"),
        (wav(np.zeros(1_600)), {"stream": "perhaps"}, 400, "true or false"),
        (wav(np.zeros(1_600)), {"phrases": "stop"}, 400, "no phrases"),
        (wav(np.zeros(4_000 * 21), 4_000), {}, 413, "longer than 20 s"),
        (b"\x00" * 400_001, {}, 413, "larger than 400000"),
    ],
)
def test_what_cannot_be_done_is_said(client, service, content, fields, status, message):
    answer = post(client, content, **fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"] and len(error["message"].splitlines()) == 1
    assert error["type"] == "invalid_request_error"
    assert service.busy == 0


def test_requests_that_are_none(client, service):
    assert client.get(URL).status_code == 405
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/models/other").status_code == 404
    assert client.post(URL, content=b"x", headers={"content-type": "audio/wav"}).status_code == 415
    assert client.post(URL, data={"model": "tiny"}, files={"other": b"x"}).status_code == 400
    broken = {"content-type": "multipart/form-data"}
    assert client.post(URL, content=b"x", headers=broken).status_code == 400
    assert client.post(URL, content=b"x", headers={**broken, "content-length": "-5"}).status_code == 400
    many = client.post(URL, files=[("file", ("a", b"x")), ("file", ("b", b"x"))])
    assert many.status_code == 400
    assert all("error" in answer for answer in (many.json(), client.get(URL).json()))
    assert service.busy == 0


def test_a_body_without_a_length_is_counted(client):
    def pieces():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield b"\x00" * 10_000

    answer = client.post(URL, content=pieces(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


def test_models_and_health(client, service):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/health").json()["status"] == "ok"
    service.closing = True
    assert client.get("/health").status_code == 503
    assert post(client, wav(speech(1.0))).status_code == 503


def test_the_page_needs_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert 'name="viewport"' in answer.text
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
    assert {"page.css", "page.js", "mark.svg"} <= set(loaded)
    for name in {"", "recordings.js", "languages.js", "microphone.js", *loaded}:
        part = client.get(f"/{name}")
        assert part.status_code == 200, name
        policy = part.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert part.headers["x-content-type-options"] == "nosniff"
        text = part.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http://" not in text and "https://" not in text and not re.search(r"""["'(]//""", text)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/mark.svg", "image/svg+xml"),
    ],
)
def test_the_pages_files_are_asked_for_anew_and_sent_once(client, path, kind):
    answer = client.get(path)
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["cache-control"] == "no-cache"
    etag = answer.headers["etag"]
    again = client.get(path, headers={"if-none-match": f'"other", W/{etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200
    assert client.head(path).status_code == 200


def test_what_the_page_imports_is_served(client):
    for script in ("page.js", "recordings.js", "languages.js"):
        for name in re.findall(r'from "\./([^"]+)"', client.get(f"/{script}").text):
            assert client.get(f"/{name}").headers["content-type"].startswith("text/javascript")


def test_the_page_finds_every_part_that_its_script_uses(client):
    page = client.get("/").text
    for name in re.findall(r"""\$\("([\w-]+)"\)""", client.get("/page.js").text):
        assert f'id="{name}"' in page, name


def test_people_are_told_what_the_model_is(service):
    told = TestClient(create_app(service), base_url="http://localhost").get("/v1/models").json()["data"][0]
    assert told["facts"] == {
        "layers": 0,
        "layers_before": 0,
        "quantization": "",
        "lower_case": False,
        "phrases": [],
    }
    assert told["limits"] == {"upload_bytes": FEW.upload_bytes, "seconds": FEW.seconds}
    facts = ModelSummary(21, 30, "int4", True, ("turn (on | off) the light",))
    client = TestClient(create_app(replace(service, facts=facts), Access("key")), base_url="http://localhost")
    assert client.get("/v1/models").status_code == 401  # what may be said is not for everybody
    assert "facts" not in client.get("/health").json()
    answer = client.get("/v1/models/tiny", headers={"authorization": "Bearer key"}).json()
    assert answer["facts"]["phrases"] == ["turn (on | off) the light"]
    assert (answer["facts"]["layers"], answer["facts"]["layers_before"]) == (21, 30)


def test_a_stream_says_how_far_it_is_and_ends_with_subtitles(client):
    content = wav(speech(1.0, 2.0))
    lines = [line for line in post(client, content, stream="true").text.splitlines() if line]
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(event["delta"] for event in deltas) == done["text"]
    reached = [event["seconds"] for event in deltas]
    assert reached == sorted(reached) and 3.0 <= reached[0] < reached[-1] <= done["usage"]["seconds"]
    assert " ".join(cue["text"] for cue in done["cues"]) == done["text"]
    assert post(client, content, response_format="srt").text.count("-->") == len(done["cues"]) == 2


def test_a_closing_server_still_gives_the_text_of_what_was_said(client, service):
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "sample_rate": 16_000})
        assert socket.receive_json()["type"] == "ready"
        said = speech(1.0, gap=0.5)[: int(1.5 * 16_000)]  # nobody has paused yet
        socket.send_bytes((said * 32_767).astype("<i2").tobytes())
        service.closing = True
        events = []
        while not events or events[-1]["type"] != "done":
            events.append(socket.receive_json())
        (final,) = [event for event in events if event["type"] == "final"]
        assert final["text"].startswith("heard")
        assert events[-1]["seconds"] == 1.5
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_json()
        assert ended.value.code == 1012


def test_a_key_is_asked_for(service):
    client = TestClient(create_app(service, Access("secret")), base_url="http://localhost")
    assert client.get("/").status_code == client.get("/health").status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
        answer = client.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "sample_rate": 16_000, "api_key": "wrong"})
        assert "API key" in socket.receive_json()["message"]
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_json()
        assert ended.value.code == 1008
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "sample_rate": 16_000, "api_key": "secret"})
        assert socket.receive_json()["type"] == "ready"


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8000", None, 200),
        ("127.0.0.1", None, 200),
        ("[::1]:8000", None, 200),
        ("192.168.1.7:8000", "http://192.168.1.7:8000", 200),
        ("prunella.home", None, 200),
        ("localhost:8000", "https://home.example", 200),
        ("evil.example", None, 421),
        ("evil.example:8000", "http://evil.example:8000", 421),
        ("localhost:8000", "http://evil.example", 403),
        ("localhost:8000", "http://localhost:3000", 403),
        ("localhost:8000", "null", 403),
        ("", None, 421),
        ("[", None, 421),
    ],
)
def test_foreign_pages_are_kept_out(service, host, origin, status):
    access = Access(None, ("prunella.home",), ("https://home.example",))
    client = TestClient(create_app(service, access))
    headers = {"host": host} | ({"origin": origin} if origin else {})
    assert client.get("/v1/models", headers=headers).status_code == status
    assert post_with(client, headers) == (400 if status == 200 else status)
    if status == 200:
        with client.websocket_connect(LIVE, headers=headers) as socket:
            socket.send_json({"type": "start"})
            assert socket.receive_json()["type"] == "ready"
    else:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(LIVE, headers=headers):
            pass


def post_with(client: TestClient, headers: dict[str, str]) -> int:
    return client.post(URL, files={"file": b"no audio"}, headers=headers).status_code


@pytest.mark.parametrize(("limits", "status"), [(FEW, 429), (Limits(requests=2, requests_per_client=9), 503)])
def test_places_are_bounded_and_given_back(service, recognizer, limits, status):
    service = replace(service, limits=limits)
    client = TestClient(create_app(service), base_url="http://localhost")
    content = wav(speech(1.0))
    recognizer.go.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, client, content) for _ in range(2)]
        while service.busy < 2:
            time.sleep(0.01)
        refused = post(client, content)
        assert refused.status_code == status
        assert refused.headers["retry-after"] == "1"
        recognizer.go.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
    assert service.busy == 0
    assert post(client, content).status_code == 200


def test_what_is_not_done_when_the_server_stops_is_told(service, recognizer):
    client = TestClient(create_app(service), base_url="http://localhost")
    recognizer.go.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, client, wav(speech(1.0)))
        while not recognizer.heard:
            time.sleep(0.01)
        service.stop.set()
        recognizer.go.set()
        assert waiting.result().status_code == 503
    assert recognizer.closed == 1


class Watched(Turns):
    """Counts who has asked for a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def ask(self):
        ticket = super().ask()
        self.asked += 1
        return ticket


def test_recordings_wait_as_files_and_are_decoded_first_come_first_served(service, recognizer, monkeypatch):
    limits = Limits(requests=6, requests_per_client=6)
    service = replace(service, limits=limits, uploads=Watched())
    client = TestClient(create_app(service), base_url="http://localhost")
    decoded: list[str] = []

    def load(file, **options):
        decoded.append(threading.current_thread().name)
        return open_audio(file, **options)

    monkeypatch.setattr("prunella.device_runtime.servers.http_api.open_audio", load)
    recognizer.go.clear()
    seconds = (1.0, 2.0, 3.0, 4.0)
    with ThreadPoolExecutor(len(seconds)) as pool:
        waiting = []
        for number, length in enumerate(seconds, start=1):
            waiting.append(pool.submit(post, client, wav(speech(length))))
            while service.uploads.asked < number or not recognizer.heard:
                time.sleep(0.01)
        assert len(decoded) == 1, "the others wait as files"
        # A microphone is served meanwhile: whoever asks first gets the engine next.
        with client.websocket_connect(LIVE) as socket:
            socket.send_json({"type": "start"})
            assert socket.receive_json()["type"] == "ready"
            socket.send_bytes((speech(0.5) * 32_767).astype("<i2").tobytes())
            recognizer.go.set()
            socket.send_json({"type": "stop"})
            while socket.receive_json()["type"] != "done":
                pass
        assert all(answer.result().status_code == 200 for answer in waiting)
    lengths = [len(samples) for samples in recognizer.heard]
    recordings = [length for length in lengths if length > 1.9 * 16_000]
    assert recordings == sorted(recordings) and len(recordings) == len(seconds)
    while service.busy:
        time.sleep(0.01)


def test_a_waiting_recording_whose_server_stops_is_told(service, recognizer):
    client = TestClient(create_app(service), base_url="http://localhost")
    recognizer.go.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, client, wav(speech(1.0))) for _ in range(2)]
        while service.busy < 2 or not recognizer.heard:
            time.sleep(0.01)
        service.stop.set()
        recognizer.go.set()
        assert [answer.result().status_code for answer in waiting] == [503, 503]
    assert service.busy == 0 and len(recognizer.heard) == 1


def test_the_first_deltas_of_a_stream_come_before_the_last_utterance_is_decoded(service):
    deltas: list[str] = []
    come = threading.Event()

    class OneAfterTheOther(Counting):
        def stream(self, samples, *, draft=()):
            if self.heard:
                assert come.wait(20), "nothing was sent while the rest was still to be decoded"
            return (yield from super().stream(samples, draft=draft))

    service = replace(service, recordings=OneAfterTheOther())
    scope, body = streamed(speech(1.0, 2.0))
    received = iter([{"type": "http.request", "body": body}])

    async def receive():
        for message in received:
            return message
        await asyncio.Event().wait()

    async def send(message):
        for line in message.get("body", b"").decode().split("\n\n"):
            if line:
                event = json.loads(line.removeprefix("data: "))
                deltas.append(event.get("delta", event["type"]))
        if "".join(deltas) == "heard 20 tenths":
            come.set()

    asyncio.run(asyncio.wait_for(create_app(service)(scope, receive, send), 40))
    assert "".join(deltas) == "heard 20 tenths heard 30 tenthstranscript.text.done"
    assert len(deltas) == 7 and come.is_set()


def test_a_stream_keeps_its_place_until_its_thread_is_done(service, recognizer):
    app = create_app(service)
    scope, body = streamed(speech(1.0))

    async def talk() -> None:
        recognizer.go.clear()
        said = asyncio.Event()
        received = iter([{"type": "http.request", "body": body}])

        async def receive():
            for message in received:
                return message
            await said.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message.get("body"):
                said.set()

        await asyncio.wait_for(app(scope, receive, send), 20)  # its client has gone
        assert service.busy == 1
        recognizer.go.set()
        while service.busy:
            await asyncio.sleep(0.01)

    asyncio.run(talk())
    assert recognizer.closed == 1


def test_who_has_gone_ends_the_search_for_speech(service):
    gone, frames = threading.Event(), []

    def vad(frame) -> float:
        frames.append(frame)
        if len(frames) == 10:
            gone.set()
        return 0.0

    service = replace(service, make_vad=lambda: vad)
    with pytest.raises(CancelledError):
        service.recognize(np.zeros(16_000 * 10, np.float32), gone=gone)
    assert len(frames) == 10


def test_an_upload_has_a_deadline_however_lively_it_is(service, recognizer):
    service = replace(service, limits=Limits(idle_seconds=5.0, upload_seconds=0.3))
    app = create_app(service)
    statuses, sent = [], 0

    async def receive():
        nonlocal sent
        sent += 1
        await asyncio.sleep(0.05)
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        return {"type": "http.request", "body": head if sent == 1 else b"x", "more_body": sent < 200}

    async def send(message):
        statuses.append(message.get("status"))

    scope = {
        "type": "http",
        "method": "POST",
        "path": URL,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")],
    }
    asyncio.run(app(scope, receive, send))
    assert statuses[0] == 408 and sent < 100
    assert service.busy == 0


def test_turns_are_given_in_order_and_none_is_lost_with_who_went():
    turns, order = Watched(), []
    first = turns.ask()
    assert first.done()
    gone, second = turns.ask(), turns.ask()
    cancelled = turns.ask()
    cancelled.cancel()

    def wait(name: str) -> None:
        with turns:
            order.append(name)

    threads = []
    for name in "abc":
        threads.append(threading.Thread(target=wait, args=(name,)))
        threads[-1].start()
        while turns.asked < 4 + len(threads):
            time.sleep(0.001)
    turns.give_up(gone)
    assert not second.done() and order == []
    turns.give_up(first)
    assert second.done()
    turns.give_up(cancelled)
    assert order == []
    turns.give_up(second)
    for thread in threads:
        thread.join(10)
    assert order == ["a", "b", "c"]
    assert turns.ask().done()


def test_live_audio_comes_back_as_text(client, service, recognizer):
    samples = speech(1.0, 2.0)
    upsampled = np.repeat(samples, 3)
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "sample_rate": 48_000})
        assert socket.receive_json() == {"type": "ready", "model": "tiny", "language": "en"}
        for block in np.array_split((upsampled * 32_767).astype("<i2"), 50):
            socket.send_bytes(block.tobytes())
        socket.send_json({"type": "stop"})
        events = []
        while (event := socket.receive_json())["type"] != "done":
            events.append(event)
    assert event["seconds"] == pytest.approx(len(samples) / 16_000, abs=0.01)
    finals = [e for e in events if e["type"] == "final"]
    assert [f["utterance_id"] for f in finals] == [1, 2]
    assert finals[0]["t0"] == pytest.approx(2.0, abs=0.4)
    assert all(f["text"].startswith("heard") for f in finals)
    assert service.busy == 0


def test_a_drop_of_audio_now_and_then_keeps_no_session_for_ever(service):
    service = replace(service, limits=Limits(seconds=0.5, live=1, idle_seconds=5.0))
    client = TestClient(create_app(service), base_url="http://localhost:8000")
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start"})
        assert socket.receive_json()["type"] == "ready"
        answers = ThreadPoolExecutor(1).submit(socket.receive_json)
        while not answers.done():
            socket.send_bytes(b"\0\0")
            time.sleep(0.05)
        assert "open a new one" in answers.result()["message"]
    while service.busy:
        time.sleep(0.01)


@pytest.mark.parametrize("start", [b"\x1aE\xdf\xa3", b"OggS", b"\0\0\0\x18ftyp"])
def test_a_coded_recording_is_not_taken_for_live_samples(client, start):
    """What a page's MediaRecorder gives."""
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start"})
        assert socket.receive_json()["type"] == "ready"
        socket.send_bytes(start.ljust(1_001, b"\0"))
        assert "not samples: send 16-bit PCM" in socket.receive_json()["message"]


def test_only_so_many_microphones(client, service):
    with client.websocket_connect(LIVE) as first:
        first.send_json({"type": "start"})
        assert first.receive_json()["type"] == "ready"
        with client.websocket_connect(LIVE) as second:
            second.send_json({"type": "start"})
            assert "live sessions" in second.receive_json()["message"]
            with pytest.raises(WebSocketDisconnect) as ended:
                second.receive_json()
            assert ended.value.code == 1013
    while service.busy:
        time.sleep(0.01)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "sample_rate", "api_key", "phrases"]), inner, max_size=4)
    ),
    max_leaves=6,
)
_MESSAGES = st.lists(
    st.binary(max_size=2_001)
    | st.text(max_size=20)
    | _JSON.map(json.dumps)
    | st.sampled_from(['{"type": "start"}', '{"type": "stop"}', '{"type": "start", "sample_rate": 44100}']),
    max_size=6,
)


@given(_MESSAGES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_messages_end_in_an_answer(client, service, messages):
    with client.websocket_connect(LIVE) as socket:
        try:
            for message in messages:
                (socket.send_bytes if isinstance(message, bytes) else socket.send_text)(message)
            socket.send_text("not json")  # ends every session that is still open
            while socket.receive_json()["type"] not in ("error", "done"):
                pass
        except WebSocketDisconnect as ended:
            assert ended.code in (1000, 1007, 1008, 1009, 1013)
    while service.busy:
        time.sleep(0.001)


@st.composite
def _bodies(draw):
    """Bytes that are nearly a form with nearly a recording in it."""
    audio = bytearray(wav(speech(0.3, gap=0.1)))
    for _ in range(draw(st.integers(0, 4))):
        audio[draw(st.integers(0, min(60, len(audio) - 1)))] = draw(st.integers(0, 255))
    audio = audio[: draw(st.integers(0, len(audio)))]
    header = draw(
        st.sampled_from(['form-data; name="file"; filename="a.wav"', 'form-data; name="file"', "x", ""])
    )
    name, value = draw(st.sampled_from(["stream", "language", "é", ""])), draw(st.text(max_size=5))
    body = (
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        f"--b\r\nContent-Disposition: {header}\r\n\r\n"
    ).encode("utf-8", "surrogatepass") + bytes(audio)
    body += draw(st.sampled_from([b"\r\n--b--\r\n", b"\r\n--b", b"", b"\r\n--b--\r\nmore"]))
    return draw(st.sampled_from([body, body[: draw(st.integers(0, len(body)))]]) | st.binary(max_size=200))


@given(
    _bodies(),
    st.sampled_from(
        [
            "multipart/form-data; boundary=b",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "text/plain",
        ]
    )
    | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=30),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_upload_ends_in_a_status(client, service, body, content_type):
    answer = client.post(URL, content=body, headers={"content-type": content_type.strip().encode("latin-1")})
    assert answer.status_code in (200, 400, 413, 415)
    assert service.busy == 0


@pytest.fixture
def phrase_service(service, recognizer) -> TranscriptionService:
    """One that reads phrases as the real one does."""

    def with_phrases(text: str) -> Counting:
        parse_phrases(text, name="phrases")
        return recognizer

    return replace(service, with_phrases=with_phrases)


@pytest.fixture
def held_to_phrases(phrase_service) -> TestClient:
    return TestClient(create_app(phrase_service), base_url="http://localhost")


_PHRASES = st.text(alphabet="ab{}()[]|=:# \n\ud800", max_size=60) | st.sampled_from(
    [
        "(" * 5_000,
        "|" * 30_000,
        "\n".join(f"{{a{n}}} = {{number}} {{number}}" for n in range(60)),
        "go " * 20_000,
        "go " * 40_000,
    ]
)


@given(_PHRASES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_phrases_are_used_or_refused(held_to_phrases, phrase_service, phrases):
    if "\ud800" not in phrases:  # a form is UTF-8
        answer = post(held_to_phrases, wav(speech(0.3, gap=0.1)), phrases=phrases)
        assert answer.status_code in (200, 400)
    with held_to_phrases.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "phrases": phrases})
        answer = socket.receive_json()
        if answer["type"] == "error":
            assert len(answer["message"]) < 500
            with pytest.raises(WebSocketDisconnect) as ended:
                socket.receive_json()
            assert ended.value.code in (1007, 1009)
    while phrase_service.busy:
        time.sleep(0.001)


def test_a_message_before_the_key_is_small_and_half_a_character_is_no_key(service):
    client = TestClient(create_app(service, Access("secret")), base_url="http://localhost")
    for first, code in (
        ({"type": "start", "api_key": "\ud800"}, 1008),
        ({"type": "start", "api_key": "secret", "phrases": "é" * 40_000}, 1009),
        ({"type": "start", "api_key": "s" * 100_000}, 1009),
    ):
        with client.websocket_connect(LIVE) as socket:
            socket.send_text(json.dumps(first, ensure_ascii=code == 1008))
            assert socket.receive_json()["type"] == "error"
            with pytest.raises(WebSocketDisconnect) as ended:
                socket.receive_json()
            assert ended.value.code == code


def test_phrases_of_a_request_are_used_or_refused(service, recognizer):
    asked: list[str] = []

    def with_phrases(text: str) -> Counting:
        asked.append(text)
        if "(" in text:
            raise UsageError("phrases, line 1: a bracket is not closed")
        return recognizer

    service = replace(service, with_phrases=with_phrases)
    client = TestClient(create_app(service), base_url="http://localhost")
    assert post(client, wav(speech(1.0)), phrases="go\nstop").status_code == 200
    refused = post(client, wav(speech(1.0)), phrases="go (")
    assert refused.status_code == 400 and "line 1" in refused.json()["error"]["message"]
    assert asked == ["go\nstop", "go ("]
