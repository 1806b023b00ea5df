"""What clients send to a server: whatever it is, it is answered in the protocol's own words, and every place is given back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fuzz.harness import fuzz
from fuzz.strategies import CONVERSATIONS, WYOMING
from fuzz.variations import vary_bytes, vary_conversation

from prunella.device_runtime.bundle import Language
from prunella.device_runtime.decoding.phrase_grammar import parse_phrases
from prunella.device_runtime.servers.http_api import create_app
from prunella.device_runtime.servers.service import Limits, TranscriptionService
from prunella.device_runtime.servers.wyoming_server import start_wyoming
from prunella.device_runtime.transcript import Transcript

pytestmark = pytest.mark.slow

LIMITS = Limits(seconds=5.0, idle_seconds=20.0, live=1, requests=1)
CLOSED = {1000, 1007, 1008, 1009}
SAID_BY_WYOMING = {
    "info",
    "pong",
    "error",
    "transcript-start",
    "transcript-chunk",
    "transcript",
    "transcript-stop",
}


class Fixed:
    """Always says the same."""

    def stream(self, samples, *, draft=()):
        yield "turn on"
        return Transcript("turn on the light")


def _with_phrases(text: str) -> Fixed:
    parse_phrases(text, name="phrases")
    return Fixed()


@pytest.fixture
def service() -> TranscriptionService:
    def loud(frame) -> float:
        return float(np.abs(frame).max() > 0.05)

    return TranscriptionService(
        Fixed(),
        "tiny",
        "en",
        LIMITS,
        make_vad=lambda: loud,
        with_phrases=_with_phrases,
        with_language=lambda recognizer, code: recognizer,
        languages=(Language("en", "English", "", ()), Language("zh", "Chinese", "", ())),
    )


@pytest.fixture
def run() -> Iterator[Callable]:
    """Runs a coroutine on one loop for all inputs, and tells what failed on it unseen, or was written to stderr."""
    loop = asyncio.new_event_loop()
    troubles: list[dict] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))

    def run(work):
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            result = loop.run_until_complete(work)
        assert "Traceback" not in stderr.getvalue()
        assert not troubles
        return result

    yield run
    gc.collect()  # a task that failed unseen tells when it is collected
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert not troubles


def test_websocket_frames(service, run):
    app = create_app(service)
    scope = {
        "type": "websocket",
        "path": "/v1/live",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "subprotocols": [],
    }

    async def talk(messages: list[str | bytes]) -> list[dict]:
        coming = [{"type": "websocket.connect"}]
        for message in messages:
            kind = "bytes" if isinstance(message, bytes) else "text"
            coming.append({"type": "websocket.receive", kind: message})
        coming.append({"type": "websocket.disconnect", "code": 1001})
        sent: list[dict] = []

        async def receive() -> dict:
            await asyncio.sleep(0)
            return coming.pop(0)

        async def send(message: dict) -> None:
            sent.append(message)

        await app(dict(scope), receive, send)
        return sent

    def check(messages: list[str | bytes]) -> None:
        accepted, *sent = run(talk(messages))
        assert accepted["type"] == "websocket.accept"
        if sent and sent[-1]["type"] == "websocket.close":
            last = sent.pop()
            assert last["code"] in CLOSED and len(last.get("reason", "")) <= 123
        for message in sent:
            event = json.loads(message["text"])
            assert event["type"] in {"ready", "partial", "final", "silence", "done", "error"}
            assert event["type"] != "error" or 0 < len(event["message"]) < 1_000
        assert service.busy == 0

    fuzz("websockets", CONVERSATIONS, check, vary_conversation)


def test_wyoming_frames(service, run):
    server = run(start_wyoming(service, "127.0.0.1", 0))
    port = server.port

    async def talk(blob: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(blob)
        with contextlib.suppress(ConnectionError):
            writer.write_eof()
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                answer += part
        writer.close()
        while service.busy:  # its client has gone
            await asyncio.sleep(0.001)
        return answer

    def check(blob: bytes) -> None:
        answer = io.BytesIO(run(talk(blob)))
        while line := answer.readline():
            header = json.loads(line)
            assert header["type"] in SAID_BY_WYOMING
            answer.seek(header.get("data_length", 0) + (header.get("payload_length") or 0), io.SEEK_CUR)

    try:
        fuzz("wyoming", WYOMING, check, vary_bytes)
    finally:
        run(server.stop())
