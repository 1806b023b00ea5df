"""The server's HTTP port against clients that only take: room, time and memory. Over real sockets, as floods are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from prunella.device_runtime.serve import serve
from prunella.device_runtime.servers.access import Access
from prunella.device_runtime.servers.connections import Connections
from prunella.device_runtime.servers.http_api import create_app
from prunella.device_runtime.servers.service import Limits, TranscriptionService
from prunella.device_runtime.servers.tls import self_signed, server_context
from prunella.device_runtime.transcript import Transcript

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (
    b"GET /v1/live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
TEXT, BINARY, PING, PONG, REST = 1, 2, 9, 10, 0


class Silent:
    def stream(self, samples, *, draft=()):
        yield ""
        return Transcript("")


@pytest.fixture
def service() -> TranscriptionService:
    limits = Limits(requests=1, live=1, idle_seconds=0.5)  # 8 connections
    return TranscriptionService(Silent(), "tiny", limits=limits, make_vad=lambda: lambda frame: 0.0)


def served(service: TranscriptionService, talk: Callable[[int], Awaitable[None]], tls=None) -> None:
    """Talk to a server of its own, given its port."""

    async def run() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = asyncio.create_task(
            serve(create_app(service, Access("secret")), service, port=port, tls=tls)
        )
        while True:
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                break
            await asyncio.sleep(0.01)
        try:
            await asyncio.wait_for(talk(port), 30)
        finally:
            server.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await server

    asyncio.run(run())


async def connect(port: int, first: bytes = b""):
    """With buffers so small that what is not read is soon noticed."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1)
    writer.write(first)
    return reader, writer


async def healthy(port: int, context: ssl.SSLContext | None = None) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(HEALTH)
    answer = await reader.readline()
    writer.close()
    return b" 200 " in answer


def frame(kind: int, payload: bytes = b"", last: bool = True) -> bytes:
    assert len(payload) < 65_536
    size = bytes([128 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack("!H", len(payload))
    return bytes([(128 if last else 0) | kind]) + size + bytes(4) + payload


async def open_socket(port: int, *, key: bool = False):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    if key:
        writer.write(frame(TEXT, json.dumps({"type": "start", "api_key": "secret"}).encode()))
        assert b"ready" in await reader.readuntil(b"}")
    return reader, writer


async def is_refused(writer: asyncio.StreamWriter, blob: bytes, most: int) -> bool:
    """Whether the server ends the connection before it has taken so many bytes."""
    with contextlib.suppress(ConnectionError):
        for _ in range(most // len(blob)):
            writer.write(blob)
            await writer.drain()
        await asyncio.sleep(2)
        writer.write(blob)
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.write(blob)
        await writer.drain()
        return False
    return True


@pytest.mark.parametrize(
    "first", [b"", b"GET / HTTP/1.1\r\nHost: loc", b"POST /v1/x HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_an_honest_client_is_served_however_many_do_nothing(service, first):
    async def talk(port: int) -> None:
        flood = [await connect(port, first) for _ in range(5 * service.limits.connections)]
        assert await healthy(port)
        for _, writer in flood:
            writer.close()

    served(service, talk)


def test_tls_that_is_never_agreed_on_keeps_nobody_out(service, tmp_path):
    certificate, key, _ = self_signed(tmp_path, ())
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False

    async def talk(port: int) -> None:
        flood = [await connect(port) for _ in range(5 * service.limits.connections)]
        assert await healthy(port, context)
        open_ = [reader for reader, _ in flood if not reader.at_eof()]
        assert len(open_) < service.limits.connections
        for _, writer in flood:
            writer.close()

    served(service, talk, server_context(certificate, key))


def test_a_request_that_does_not_come_is_ended_with_a_word(service):
    async def talk(port: int) -> None:
        reader, writer = await connect(port, b"GET / HTTP/1.1\r\nX: ")

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"a")
                    await writer.drain()
                    await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        answer = await reader.read(10_000)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"nothing came" in answer
        dripping.cancel()
        writer.close()

    served(service, talk)


@pytest.mark.parametrize("drop", [b"x", b""])
def test_a_body_behind_its_answer_keeps_no_connection(service, drop):
    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n")
        assert b" 401 " in await reader.readline()
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(drop)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(1_000), 0.1)
        writer.close()

    served(service, talk)


def test_headers_are_bounded_even_if_they_come_at_once(service):
    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEALTH[:-2] + b"a:b\r\n" * 20_000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert b" 200 " not in await reader.readline()
        assert await healthy(port)
        writer.close()

    served(service, talk)


def test_answers_that_nobody_reads_are_not_kept(service):
    async def talk(port: int) -> None:
        _, writer = await connect(port)
        writer.transport.pause_reading()
        assert await is_refused(writer, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100, 10_000_000)
        assert await healthy(port)

    served(service, talk)


def test_sockets_without_a_key_are_few_and_make_room_for_others(service):
    async def talk(port: int) -> None:
        _, heard = await open_socket(port, key=True)

        async def speak() -> None:
            while True:
                heard.write(frame(BINARY, bytes(3_200)))
                await asyncio.sleep(0.1)

        speaking = asyncio.create_task(speak())
        waiting = [await open_socket(port) for _ in range(2 * service.limits.live + 1)]
        assert b"be heard" in await waiting[0][0].read(), "it has waited longest"
        assert not any(reader.at_eof() for reader, _ in waiting[1:])
        for reader, _ in waiting[1:]:
            assert await reader.read(), "a word that nothing came"
        assert service.live_sessions == 1, "who has shown its key is left in peace"
        speaking.cancel()
        for _, writer in [*waiting, (None, heard)]:
            writer.close()

    served(service, talk)


@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"", frame(PING, b"x" * 125)),
        (b"", frame(PONG)),
        (frame(BINARY, b"", False), frame(REST, b"", False)),
    ],
    ids=["pings", "pongs", "fragments"],
)
def test_frames_that_hold_nothing_end_the_connection(service, key, first, more):
    async def talk(port: int) -> None:
        _, writer = await open_socket(port, key=key)
        writer.transport.pause_reading()
        writer.write(first)
        assert await is_refused(writer, more * 8_000, 8_000_000)
        assert await healthy(port)
        writer.close()
        while service.live_sessions:
            await asyncio.sleep(0.01)

    served(service, talk)


def test_messages_that_hold_nothing_are_not_piled_up(service):
    async def talk(port: int) -> None:
        _, writer = await open_socket(port, key=True)
        assert await is_refused(writer, frame(BINARY) * 8_000, 8_000_000)
        writer.close()
        while service.live_sessions:
            await asyncio.sleep(0.01)

    served(service, talk)


def test_whoever_has_most_gives_way_first():
    ended: list[str] = []
    room = Connections(3, 60.0)
    quiet = room.enter("quiet", lambda: ended.append("quiet"))
    for number in range(2):
        room.enter("flood", lambda number=number: ended.append(f"flood {number}"))
    assert room.enter("new", lambda: None) is not None
    assert ended == ["flood 0"] and len(room) == 3
    for _ in range(5):
        assert room.enter("flood", lambda: ended.append("flood")) is not None
    assert "quiet" not in ended
    quiet.owes(False)
    for busy in room:
        busy.owes(False)
    assert room.enter("late", lambda: None) is None


def test_a_live_session_of_audio_is_taken_whole(service):
    async def talk(port: int) -> None:
        reader, writer = await open_socket(port, key=True)
        samples = np.zeros(16_000, "<i2").tobytes()
        message = frame(BINARY, samples[:10_000], False) + frame(REST, samples[10_000:])
        for _ in range(20):
            writer.write(message + frame(PING))
        writer.write(frame(TEXT, b'{"type": "stop"}'))
        answer = await reader.readuntil(b"done")
        answer += await reader.readuntil(b"}")
        assert b'"seconds":20.0' in answer.replace(b" ", b"")
        writer.close()

    served(service, talk)
