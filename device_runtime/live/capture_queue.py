"""The bounded queue between an audio callback and whoever works on the audio. What does not fit is dropped and counted."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from prunella.device_runtime.base.arrays import Float32


@dataclass(frozen=True)
class Captured:
    """(n, channels) frames as the device gave them. `lost`: frames dropped just before. `moment`: of their capture."""

    frames: Float32
    lost: int
    moment: float


class CaptureQueue:
    """One thread puts, one takes. Putting never waits and takes no lock that the other side holds for long.

    Args:
        limit: frames that may wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: queue.SimpleQueue[Captured | None] = queue.SimpleQueue()
        # Each counter has one writer: `_taken` the taking thread, the others the putting one.
        self._put = self._taken = self._lost = 0
        self.dropped = 0  # frames in all

    def put(self, frames: Float32, moment: float) -> None:
        """Queue a copy of (n, channels) frames, or count them as dropped."""
        if self._put - self._taken + len(frames) > self._limit:
            self._lost += len(frames)
            self.dropped += len(frames)
            return
        self._put += len(frames)
        lost, self._lost = self._lost, 0
        self._items.put(Captured(frames.copy(), lost, moment))

    def wake(self) -> None:
        """Make `take` return None once. Safe in a signal handler."""
        self._items.put(None)

    def take(self, timeout: float) -> Captured | None:
        """The next frames; waits.

        Raises:
            queue.Empty: nothing came in `timeout` seconds.
        """
        item = self._items.get(timeout=timeout)
        if item is not None:
            self._taken += len(item.frames)
        return item

    def lost_at_end(self) -> int:
        """Frames dropped since the last that were queued; asked for when nothing is put any more."""
        return self._lost
