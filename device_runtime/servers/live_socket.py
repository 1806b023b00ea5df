"""Live audio over a WebSocket: `/v1/live`.

The client sends `{"type": "start", "sample_rate": 48000}` (with `api_key` where the server has one, `phrases` and `language`
if it likes), then 16-bit little-endian mono PCM as binary messages, then `{"type": "stop"}`. The server answers
`{"type": "ready"}`, the events of `LiveEvent`, and `{"type": "done"}`; a refusal is `{"type": "error", "message": ...}`
and a close code: 1008 not allowed, 1007 not understood, 1009 too much, 1013 try again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.websockets import WebSocket, WebSocketDisconnect

from prunella.device_runtime.base.errors import PrunellaError
from prunella.device_runtime.live.events import LiveEvent
from prunella.device_runtime.live.pcm_stream import name_container
from prunella.device_runtime.live.session import LiveSession
from prunella.device_runtime.servers.access import Access, bearer
from prunella.device_runtime.servers.connections import ADMITTED
from prunella.device_runtime.servers.service import PHRASES_BYTES, BusyError, TranscriptionService
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.resampling import StreamResampler

RATES = range(8_000, 192_001)
_FIRST = PHRASES_BYTES + 4_096  # bytes of the first message: nobody has shown a key yet
_LARGEST = 1 << 20  # bytes of any other
_LOOK_UP = 0.25  # seconds between two looks at whether the server is closing
_UNREAD = 1_000  # events that a client may leave unread before it is given up


class RefusedError(PrunellaError):
    """The client did something that ends the connection."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def live_socket(service: TranscriptionService, access: Access) -> Callable[[WebSocket], Awaitable[None]]:
    """The handler of `/v1/live`. The Origin was checked before it (`AccessMiddleware`)."""

    async def handle(socket: WebSocket) -> None:
        await socket.accept()
        try:
            await _serve(socket, service, access)
        except WebSocketDisconnect:
            return
        except RefusedError as error:
            await _refuse(socket, error.code, str(error))
        except BusyError as error:
            await _refuse(socket, 1013, str(error))
        except PrunellaError as error:
            await _refuse(socket, 1007, str(error))

    return handle


async def _serve(socket: WebSocket, service: TranscriptionService, access: Access) -> None:
    messages = _Messages(socket, service.limits.idle_seconds, service.limits.seconds)
    start = await messages.next(at_most=_FIRST)
    if not isinstance(start, dict) or start.get("type") != "start":
        raise RefusedError(1007, "the first message must be {'type': 'start', 'sample_rate': ...}")
    key = start.get("api_key") or bearer(socket.headers)
    if not access.key_allowed(key if isinstance(key, (str, bytes)) else None):
        raise RefusedError(1008, "a valid API key is missing: send it as 'api_key' in the first message")
    rate = start.get("sample_rate", SAMPLE_RATE)
    if not isinstance(rate, int) or rate not in RATES:
        raise RefusedError(1007, f"the sample rate must be a whole number from {RATES[0]} to {RATES[-1]}")
    phrases = start.get("phrases")
    if phrases is not None and not isinstance(phrases, str):
        raise RefusedError(1007, "phrases must be one text with a phrase a line")
    asked = start.get("language")
    if service.languages and not isinstance(asked, (str, type(None))):
        raise RefusedError(1007, "language must be a text: a language's code or English name")
    language = service.find_language(asked) if isinstance(asked, str) else None
    with service.live_slot():
        socket.scope.get("state", {}).get(ADMITTED, lambda: None)()
        recognizer = await service.on_thread(functools.partial(service.choose, phrases, language, live=True))
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[LiveEvent | None] = asyncio.Queue()
        session = LiveSession(
            recognizer,
            lambda event: _post(loop, events, event),
            partials=service.choose_partials(phrases, language),
            vad=await service.on_thread(service.make_vad),
            lock=service.lock,
        )
        told = service.language if language is None else language
        await socket.send_json({"type": "ready", "model": service.model, "language": told})
        sender = asyncio.create_task(_send(socket, events))
        try:
            stopped = await _feed(messages, session, rate, service, events)
            await service.on_thread(session.finish)
            events.put_nowait(None)
            await sender
            done: dict[str, Any] = {"type": "done", "seconds": round(session.seconds_fed, 3)}
            if session.warnings:
                done["warnings"] = list(session.warnings)
            await socket.send_json(done)
            await socket.close(1000 if stopped else 1012, "" if stopped else "the server is shutting down")
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sender
            await asyncio.shield(service.on_thread(session.close))


async def _feed(
    messages: _Messages,
    session: LiveSession,
    rate: int,
    service: TranscriptionService,
    events: asyncio.Queue[LiveEvent | None],
) -> bool:
    """Pass audio on until the client says stop → True, or the server closes → False; what was said has its text then.

    A session that is behind holds the client back; nothing is lost.
    """
    resampler = StreamResampler(rate)

    def feed(samples: npt.NDArray[np.float32], last: bool) -> None:
        session.feed(resampler(samples, last=last))

    while True:
        message = await messages.next(unless=lambda: service.closing)
        if message is None:
            await service.on_thread(functools.partial(feed, np.zeros(0, np.float32), True))
            return False
        if isinstance(message, bytes):
            if not session.seconds_fed and (coded := name_container(message[:12])):
                raise RefusedError(1007, f"what came is {coded}, not samples: send 16-bit PCM")
            if len(message) % 2:
                raise RefusedError(1007, "half a sample came: send whole 16-bit samples")
            samples = np.frombuffer(message, "<i2").astype(np.float32) / np.float32(32_768)
            await service.on_thread(functools.partial(feed, samples, False))
        elif message.get("type") == "stop":
            await service.on_thread(functools.partial(feed, np.zeros(0, np.float32), True))
            return True
        else:
            raise RefusedError(1007, "send audio as binary messages, or {'type': 'stop'}")
        if session.seconds_fed > service.limits.seconds:
            raise RefusedError(1009, f"a session may last {service.limits.seconds:.0f} s: open a new one")
        if events.qsize() > _UNREAD:
            raise RefusedError(1008, "the answers are not read: read them")


class _Messages:
    """What a client sends: bytes, or the object that a text message holds."""

    def __init__(self, socket: WebSocket, idle: float, in_all: float) -> None:
        self._socket, self._idle = socket, idle
        self._left = in_all  # seconds to wait for the client, however lively it is
        self._coming: asyncio.Task[Any] | None = None

    async def next(self, *, unless: Callable[[], bool] = lambda: False, at_most: int = _LARGEST) -> Any:
        """The next message, of `at_most` bytes; None as soon as `unless()`.

        Raises:
            RefusedError: nothing came in time, or what came is no message of ours.
            WebSocketDisconnect: the client has gone.
        """
        self._coming = self._coming or asyncio.ensure_future(self._socket.receive())
        waited = 0.0
        while not self._coming.done():
            if unless():
                self._coming.cancel()
                return None
            if self._left <= 0:
                self._coming.cancel()
                raise RefusedError(1009, "a session may not be so long: open a new one")
            if waited >= self._idle:
                self._coming.cancel()
                raise RefusedError(1008, f"nothing came for {self._idle:g} s: open a new session")
            step = min(_LOOK_UP, self._idle - waited)
            began = time.monotonic()
            await asyncio.wait({self._coming}, timeout=step)
            self._left -= time.monotonic() - began
            waited += step
        message, self._coming = self._coming.result(), None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        content = message.get("bytes")
        if content is None:
            content = message.get("text") or ""
            at_most = min(at_most, _FIRST)  # JSON takes many times its bytes
        # A character is a byte at least, and asked first: the bytes of a text are made only to be counted.
        if len(content) > at_most or (
            isinstance(content, str) and len(content.encode(errors="replace")) > at_most
        ):
            raise RefusedError(1009, f"a message is larger than {at_most} bytes: send smaller ones")
        if isinstance(content, bytes):
            return content
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RefusedError(1007, "a text message must be JSON") from error
        if not isinstance(body, dict):
            raise RefusedError(1007, "a text message must be a JSON object")
        return body


async def _send(socket: WebSocket, events: asyncio.Queue[LiveEvent | None]) -> None:
    while (event := await events.get()) is not None:
        await socket.send_json(event.to_json())


def _post(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[LiveEvent | None], event: LiveEvent) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
        loop.call_soon_threadsafe(events.put_nowait, event)


async def _refuse(socket: WebSocket, code: int, message: str) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it may have gone in the meantime
        await socket.send_json({"type": "error", "message": message})
        await socket.close(code, message[:100])
