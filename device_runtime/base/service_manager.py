"""What systemd is told: that a service is ready, that it still works, and that it stops (sd_notify's protocol).

Elsewhere nothing happens. The socket is the one that NOTIFY_SOCKET names; see sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"


def notify(*states: str) -> bool:
    """Send states, such as `READY` or "STATUS=loading" → whether somebody was told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX") or address[0] not in "/@":
        return False
    if address[0] == "@":  # a name that is no file
        address = f"\0{address[1:]}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto("\n".join(states).encode(), address)
        return True
    return False


def watchdog_interval() -> float | None:
    """Seconds between two signs of life, half of what the service manager waits; None: it does not wait for any."""
    process = os.environ.get("WATCHDOG_PID")
    if process and process != str(os.getpid()):
        return None
    with contextlib.suppress(ValueError):
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
        return microseconds / 2e6 if microseconds > 0 else None
    return None


class Watchdog:
    """Signs of life of work that comes round again and again: not more of them than are waited for."""

    def __init__(self) -> None:
        self._interval = watchdog_interval()
        self._next = 0.0

    def alive(self) -> None:
        """Called by the work itself, however often."""
        if self._interval is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval / 2
            notify(ALIVE)
