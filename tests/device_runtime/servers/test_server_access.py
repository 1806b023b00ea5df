"""Who is let in by the server: keys of any letters, and pages of other origins with what their browsers ask first."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.servers.access import Access
from prunella.device_runtime.servers.http_api import create_app
from prunella.device_runtime.servers.service import TranscriptionService
from prunella.device_runtime.transcript import Transcript

HOME = "https://home.example"
LIVE = "ws://localhost/v1/live"
URL = "/v1/audio/transcriptions"


class Silent:
    def stream(self, samples, *, draft=()):
        yield ""
        return Transcript("")


def client_of(access: Access) -> TestClient:
    service = TranscriptionService(Silent(), "tiny", make_vad=lambda: lambda frame: 0.0)
    return TestClient(create_app(service, access), base_url="http://localhost", raise_server_exceptions=True)


def status_with(access: Access, header: bytes) -> int:
    """Of a request with exactly these bytes: the test client would write them in UTF-8."""
    app = create_app(TranscriptionService(Silent(), "tiny", make_vad=lambda: lambda frame: 0.0), access)
    headers = [(b"host", b"localhost"), (b"authorization", header)]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "query_string": b"", "headers": headers}
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize("key", ["sécret", "à", "naïve à", "ключ", "鍵🔑", "plain"])
def test_a_key_of_any_letters_is_the_servers(key):
    client = client_of(Access(key))
    spellings = {key.encode()}
    if all(ord(letter) < 256 for letter in key):
        spellings.add(key.encode("latin-1"))
    for sent in spellings:
        assert status_with(Access(key), b"Bearer " + sent) == 200
        assert status_with(Access(key), b"bearer  " + sent + b" \t") == 200
        assert status_with(Access(key), b"Bearer " + sent + b"\xa0") == 401
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "api_key": key})
        assert socket.receive_json()["type"] == "ready"
    with client.websocket_connect(LIVE, headers={"authorization": b"Bearer " + key.encode()}) as socket:
        socket.send_json({"type": "start"})
        assert socket.receive_json()["type"] == "ready"


def test_an_argument_that_is_not_utf8_is_compared_in_its_own_bytes():
    access = Access("s\udce9cret")  # how Python reads the argument s\xe9cret
    assert status_with(access, b"Bearer s\xe9cret") == 200
    assert status_with(access, "Bearer sécret".encode()) == 401


@pytest.mark.parametrize("sent", ["\ud800", "\udfff", "\udce9", "s\udcc3\udca9cret", 7, ["sécret"], None, ""])
def test_half_a_character_is_refused_like_any_wrong_key(sent):
    client = client_of(Access("sécret"))
    with client.websocket_connect(LIVE) as socket:
        socket.send_text(json.dumps({"type": "start", "api_key": sent}))
        assert "API key" in socket.receive_json()["message"]
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_json()
        assert ended.value.code == 1008


@pytest.mark.parametrize("key", ["", " ", "\t", "key ", "a\nb", "\x7f", "\ud800"])
def test_a_key_that_keeps_nobody_out_or_everybody_is_refused(key):
    with pytest.raises(UsageError, match="API key"):
        Access(key)


@pytest.mark.parametrize(
    ("words", "environment"), [(["--api-key", ""], {}), ([], {"PRUNELLA_API_KEY": ""}), (["--api-key="], {})]
)
def test_an_empty_key_is_answered_before_the_model_is_looked_at(tmp_path, words, environment):
    done = subprocess.run(
        [sys.executable, "-m", "prunella", "serve", str(tmp_path / "none"), *words],
        capture_output=True,
        text=True,
        env={"PATH": "", **environment},
    )
    assert done.returncode == 2
    assert "API key is empty" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("origin", ["*", "localhost:3000", "https://home.example/page", "home", "https://"])
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(UsageError, match="origin"):
        Access(None, (), (origin,))


@pytest.mark.parametrize("host", ["http://home", "home:8000", "home/x", "*"])
def test_a_host_that_no_browser_sends_is_refused(host):
    with pytest.raises(UsageError, match="host"):
        Access(None, (host,))


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("bücher.example", "xn--bcher-kva.example"),
        ("Straße.Example", "xn--strae-oqa.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_names_beyond_ascii_are_those_that_browsers_send(name, sent):
    access = Access(None, (name,), (f"https://{name}:8443",))
    assert access.host_allowed(f"{sent}:8000") and access.origin_allowed(f"https://{sent}:8443", "localhost")
    assert not access.host_allowed("bucher.example")
    assert not access.origin_allowed(f"https://{sent}", "localhost")


@pytest.mark.parametrize("path", [URL, "/v1/models", "/health", "/nowhere"])
def test_a_preflight_needs_no_key(path):
    client = client_of(Access("key", (), (HOME,)))
    asked = {
        "origin": HOME,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-stainless-os, no good",
    }
    answer = client.options(path, headers=asked)
    assert (answer.status_code, answer.content) == (204, b"")
    headers = answer.headers
    assert headers["access-control-allow-origin"] == HOME
    assert {"GET", "POST"} <= set(headers["access-control-allow-methods"].split(", "))
    allowed = headers["access-control-allow-headers"].split(", ")
    assert allowed == ["Authorization", "Content-Type", "x-stainless-os"]
    assert int(headers["access-control-max-age"]) > 0
    assert "Origin" in headers["vary"]

    foreign = client.options(path, headers=asked | {"origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert not [name for name in foreign.headers if name.startswith("access-control")]
    assert "Origin" in foreign.headers["vary"]


@pytest.mark.parametrize("listed", [HOME, HOME + "/", "HTTPS://Home.Example", HOME + ":443"])
def test_every_answer_to_an_allowed_page_can_be_read_by_it(listed):
    client = client_of(Access("key", (), (listed,)))
    page = {"origin": HOME}
    keyed = page | {"authorization": "Bearer key"}
    file = {"file": b"no audio"}
    answers = {
        200: client.get("/v1/models", headers=keyed),
        401: client.get("/v1/models", headers=page),
        404: client.get("/v1/nowhere", headers=keyed),
        405: client.get(URL, headers=keyed),
        400: client.post(URL, files=file, headers=keyed),
        415: client.post(URL, content=b"x", headers=keyed),
        413: client.post(URL, content=b"x", headers=keyed | {"content-length": "999999999999"}),
        421: client.get("/v1/models", headers=keyed | {"host": "evil.example"}),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == HOME
        assert "Origin" in answer.headers["vary"]
    without = client.get("/v1/models", headers={"authorization": "Bearer key"})
    assert without.status_code == 200 and "access-control-allow-origin" not in without.headers


def test_a_stream_to_an_allowed_page_can_be_read_by_it():

    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(16_000), 16_000, format="WAV")
    client = client_of(Access(None, (), (HOME,)))
    answer = client.post(
        URL, files={"file": wav.getvalue()}, data={"stream": "true"}, headers={"origin": HOME}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["access-control-allow-origin"] == HOME


def test_a_server_without_foreign_pages_sends_no_such_headers():
    answer = client_of(Access()).get("/v1/models")
    assert answer.status_code == 200 and "vary" not in answer.headers
