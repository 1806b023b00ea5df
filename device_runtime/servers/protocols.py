"""uvicorn's protocols with bounds: on time, on memory before a key is shown, and on what is sent to who does not read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from prunella.device_runtime.servers.clients import Proxies
from prunella.device_runtime.servers.connections import ADMITTED, Connection, Connections

HEADER_BYTES = 16 * 1024
_QUEUED = 4_096  # messages that wait to be taken, beside their bytes
_IDLE_FRAMES = 1_024  # pings, pongs and fragments between two messages: each costs time, whatever it holds


def bounded_protocols(
    connections: Connections, *, unheard: int
) -> tuple[type[asyncio.Protocol], type[asyncio.Protocol]]:
    """uvicorn's `http` and `ws`.

    Args:
        connections: of the port.
        unheard: WebSockets at once that have shown no key.
    """
    http = type("Http", (_Http,), {"all_connections": connections})
    socket = type("Socket", (_Socket,), {"all_connections": connections, "unheard": unheard})
    return http, socket


def _enter(connections: Connections, transport: Any) -> Connection | None:
    peer = transport.get_extra_info("peername")
    connection = connections.of(transport, Proxies().client(str(peer[0])) if peer else "local")
    if connection is None:
        transport.abort()
    return connection


class _Http(H11Protocol):
    all_connections: Connections
    _connection: Connection | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connection = _enter(self.all_connections, transport)
        if self._connection is not None:
            self._connection.farewell = self._farewell

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._connection is not None:
            self._connection.leave()

    def data_received(self, data: bytes) -> None:
        # In pieces: h11 looks at the size of headers only when they are not yet whole.
        for begin in range(0, len(data), HEADER_BYTES):
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return  # refused, or a WebSocket by now
            super().data_received(data[begin : begin + HEADER_BYTES])
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._connection is not None:
            self._connection.unread(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._connection is not None:
            self._connection.unread(False)

    def _note(self) -> None:
        if self._connection is not None:
            self._connection.owes(self.cycle is None or self.cycle.response_complete)

    def _farewell(self, why: str) -> None:
        if (
            self.cycle is None
        ):  # a first request that was never finished; behind one, an answer could be taken for its
            error = {"message": f"{why}: send the request again", "type": "invalid_request_error"}
            body = json.dumps({"error": error}).encode()
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )


class _Socket(WebSocketsSansIOProtocol):
    all_connections: Connections
    unheard: int
    _connection: Connection | None = None
    _idle_frames = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connection = _enter(self.all_connections, transport)
        if self._connection is not None:
            self.all_connections.is_socket(self._connection, self.unheard)
            self._connection.farewell = self._farewell
            self._connection.owes(True)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._connection is not None:
            self._connection.leave()

    def data_received(self, data: bytes) -> None:
        for begin in range(0, len(data), HEADER_BYTES):  # few frames at a time: each is an object
            if self.transport.is_closing():
                return
            super().data_received(data[begin : begin + HEADER_BYTES])

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["state"][ADMITTED] = self._admitted

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if self._connection is not None:
            self._connection.owes(True)  # it has been told to close

    def handle_ping(self) -> None:
        super().handle_ping()
        self._count()

    def handle_pong(self, event: Any) -> None:
        super().handle_pong(event)
        self._count()

    def handle_cont(self, event: Any) -> None:
        super().handle_cont(event)
        self._count()

    def send_receive_event_to_app(self) -> None:
        self._idle_frames = 0
        if self.queue.qsize() < _QUEUED:
            super().send_receive_event_to_app()
        else:
            self._fail("too many messages at once: send larger ones")

    def _count(self) -> None:
        self._idle_frames += 1
        if self._idle_frames > _IDLE_FRAMES:
            self._fail("too many frames that are no message: send audio")

    def _fail(self, why: str) -> None:
        if not self.close_sent:
            self.frames = []
            while not self.queue.empty():
                self.queue.get_nowait()
            self.conn.fail(1008, why)
            self.handle_parser_exception()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()  # pings would be answered into a buffer that nobody empties
        if self._connection is not None:
            self._connection.unread(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()
        if self._connection is not None:
            self._connection.unread(False)

    async def receive(self) -> Any:
        message = await super().receive()
        if not self.writable.is_set() and not self.transport.is_closing():
            self.transport.pause_reading()
        return message

    def _admitted(self) -> None:
        if self._connection is not None:
            self._connection.is_socket = False
            self._connection.owes(False)

    def _farewell(self, why: str) -> None:
        self.conn.send_close(1013, why)
        self.transport.write(b"".join(self.conn.data_to_send()))
