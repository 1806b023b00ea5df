"""Turns at what only one may use at a time: first come, first served, for threads and for event loops alike."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future


class Turns:
    """A lock that is fair, and for which a coroutine can wait without a thread.

    A thread uses it as a context manager. A coroutine takes a ticket with `ask`, waits for it
    (`asyncio.wrap_future`), and calls `give_up` with it afterwards, whether it got its turn or not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Future[None]] = deque()
        self._taken = False

    def ask(self) -> Future[None]:
        """A ticket, done as soon as it is its turn."""
        ticket: Future[None] = Future()
        with self._lock:
            if self._taken:
                self._waiting.append(ticket)
                return ticket
            self._taken = True
        ticket.set_running_or_notify_cancel()
        ticket.set_result(None)
        return ticket

    def give_up(self, ticket: Future[None]) -> None:
        """End the turn, or the wait for it. Call it once for every ticket."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                ticket.cancel()
            if ticket.cancelled():
                return
            following = None
            while self._waiting and following is None:
                following = self._waiting.popleft()
                if not following.set_running_or_notify_cancel():  # who waited was cancelled
                    following = None
            self._taken = following is not None
        if following is not None:
            following.set_result(None)

    def __enter__(self) -> None:
        ticket = self.ask()
        try:
            ticket.result()
        except BaseException:  # an interrupt, while it waited
            self.give_up(ticket)
            raise
        self._held = ticket

    def __exit__(self, *_: object) -> None:
        self.give_up(self._held)
