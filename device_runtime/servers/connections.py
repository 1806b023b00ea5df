"""How many connections a port has, and which of them go when there is no room: those that owe something longest.

A client owes a request, its key, or that it reads what it was sent. While the server works for it, it owes nothing, and
other limits hold (`Limits`). A port has room for far more connections than it works for, so that nobody who behaves is sent
away because of clients that do nothing.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from prunella.device_runtime.servers.clients import Proxies

ADMITTED = "prunella.admitted"  # in a WebSocket's `scope["state"]`: to be called once it has shown its key


class Connection:
    """One of them. `end` closes it at once, whatever it has still to be sent; `farewell` says why before, if it can."""

    def __init__(self, client: str, end: Callable[[], None], all_: set[Connection]) -> None:
        self.client = client
        self.end = end
        self.farewell: Callable[[str], None] = lambda _: None
        self.is_socket = False  # a WebSocket that has shown no key yet
        self._all = all_
        all_.add(self)
        self._idle: float | None = time.monotonic()
        self._unread: float | None = None

    @property
    def owes_since(self) -> float | None:
        """The moment since when its client owes something; None: it owes nothing."""
        return min((moment for moment in (self._idle, self._unread) if moment is not None), default=None)

    def owes(self, owes: bool) -> None:
        """Whether the next step is the client's."""
        self._idle = (self._idle or time.monotonic()) if owes else None

    def unread(self, unread: bool) -> None:
        """Whether more waits to be sent to it than fits into the buffers."""
        self._unread = (self._unread or time.monotonic()) if unread else None

    def leave(self) -> None:
        """It is closed, or as good as."""
        self._all.discard(self)

    def dismiss(self, why: str) -> None:
        with contextlib.suppress(Exception):  # a farewell is a courtesy
            self.farewell(why)
        with contextlib.suppress(OSError):
            self.end()
        self.leave()


class Connections:
    """Those of one port. Not thread-safe: used on the event loop's thread.

    Args:
        most: at once.
        patience: seconds that a client may owe something.
    """

    def __init__(self, most: int, patience: float) -> None:
        self.most = most
        self.patience = patience
        self._all: set[Connection] = set()
        self._accepted: dict[int, Connection] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._all))

    def enter(self, client: str, end: Callable[[], None]) -> Connection | None:
        """A connection that came, for which another goes where there is no room; None: all are being worked for."""
        if len(self._all) >= self.most and not self._make_room(
            self._all, client, "others wait for a connection"
        ):
            return None
        return Connection(client, end, self._all)

    def is_socket(self, connection: Connection, most: int) -> None:
        """It has become a WebSocket; so many may be there that have shown no key, as each may send a large message."""
        waiting = {other for other in self._all if other.is_socket}
        if len(waiting) >= most:
            why = "others wait to be heard: send your first message at once"
            self._make_room(waiting, connection.client, why)
        connection.is_socket = True

    def sweep(self) -> None:
        """Dismiss who owes for longer than `patience`."""
        late = time.monotonic() - self.patience
        for connection in [
            one for one in self._all if (since := one.owes_since) is not None and since < late
        ]:
            connection.dismiss(f"nothing came, or nothing was read, for {self.patience:g} s")

    def of(self, transport: Any, client: str) -> Connection | None:
        """That of an asyncio transport; None: it was dismissed before there was one, or there is no room."""
        accepted = self._accepted.get(transport.get_extra_info("socket").fileno())
        if accepted is None:  # Windows accepts in its own way
            return self.enter(client, transport.abort)
        accepted.end = transport.abort
        return accepted if accepted in self._all else None

    def accepted(self, sock: socket.socket, client: str) -> Connection | None:
        """A connection of which there is no more than its socket yet: TLS may still be agreed on."""
        connection = self.enter(client, lambda: sock.shutdown(socket.SHUT_RDWR))
        if connection is not None:
            self._accepted[sock.fileno()] = connection
        return connection

    def closed(self, sock: socket.socket) -> None:
        """One that was accepted is no more: its number may be another's."""
        connection = self._accepted.pop(sock.fileno(), None)
        if connection is not None:
            connection.leave()

    def _make_room(self, among: set[Connection], client: str, why: str) -> bool:
        """Dismiss the one that owes longest, of the client who has most of these with the one that comes."""
        owing = {connection: since for connection in among if (since := connection.owes_since) is not None}
        if not owing:
            return False
        of_client = Counter([client, *(connection.client for connection in owing)])
        min(owing, key=lambda connection: (-of_client[connection.client], owing[connection])).dismiss(why)
        return True


class CountedListener(socket.socket):
    """A listening socket whose connections are counted from the moment they are accepted, before TLS asks for memory."""

    connections: Connections

    @staticmethod
    def of(listening: socket.socket, connections: Connections) -> CountedListener:
        """The same socket, which the one that is given no longer is."""
        kind = listening.family, listening.type, listening.proto
        counted = CountedListener(*kind, listening.detach())
        counted.connections = connections
        return counted

    def accept(self) -> tuple[socket.socket, Any]:
        while True:
            accepted, address = super().accept()
            counted = _CountedSocket(accepted.family, accepted.type, accepted.proto, accepted.detach())
            counted.connections = self.connections
            if self.connections.accepted(counted, Proxies().client(str(address[0]))):
                return counted, address
            counted.close()


class _CountedSocket(socket.socket):
    connections: Connections | None = None

    def close(self) -> None:
        if self.connections is not None:
            self.connections.closed(self)
        super().close()
