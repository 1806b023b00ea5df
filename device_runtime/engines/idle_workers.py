"""Threads of an ONNX Runtime session that are kept from its work for a while, though their number is fixed for good.

A session's operators share out their work among the calling thread and the workers that take part; whoever does not come is not waited for.
So a worker that is busy otherwise leaves the session with one thread less, with the same weights in the same memory. `run_async` gives a worker a
run and lets it call back: the run is told to end before its first operator, and the call waits until the worker is needed again.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from typing import Any

import numpy as np

from prunella.device_runtime.engines.providers import CPU

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_PATIENCE = 2.0  # seconds that an end waits for workers to come back


class _Idle:
    """One worker that waits."""

    def __init__(self) -> None:
        self.wanted = threading.Event()  # set: the worker goes back
        self._thread: int | None = None

    def wait(self, results: object, user: object, error: object) -> None:
        """The callback of `run_async`, on the worker."""
        self._thread = threading.get_ident()
        self.wanted.wait()

    @property
    def gone(self) -> bool:
        """Whether it is back, and needs Python's lock no more."""
        return self._thread is not None and self._thread not in sys._current_frames()  # noqa: SLF001 nothing else tells


class IdleWorkers:
    """Decides how many threads of a session work. Not thread-safe; used between two runs.

    Args:
        runtime: the module `onnxruntime`.
        session: whose pool it is; where it runs elsewhere than on the processor alone, all threads stay.
        threads: of its pool, the calling one included.
    """

    def __init__(self, runtime: Any, session: Any, threads: int) -> None:
        self._runtime, self._session, self._threads = runtime, session, threads
        self._idle: list[_Idle] = []
        self._leaving: list[_Idle] = []
        inputs = session.get_inputs()
        self._possible = (
            threads > 1 and session.get_providers() == [CPU] and all(value.type in _TYPES for value in inputs)
        )
        self._feed: dict[str, Any] = {
            value.name: np.zeros([d if isinstance(d, int) else 1 for d in value.shape], _TYPES[value.type])
            for value in (inputs if self._possible else ())
        }
        # Before the session goes, and before the interpreter does: its threads cannot end while they wait.
        weakref.finalize(self, _see_off, self._idle, self._leaving)

    def leave(self, count: int) -> None:
        """From the next run on `count` threads work, the calling one among them."""
        wanted = self._threads - count if self._possible else 0
        if len(self._idle) == wanted:
            return
        self._leaving[:] = [one for one in self._leaving if not one.gone]
        while len(self._idle) > wanted:
            one = self._idle.pop()
            one.wanted.set()
            self._leaving.append(one)
        while len(self._idle) < wanted:
            one = _Idle()
            options = self._runtime.RunOptions()
            options.terminate = True
            options.log_severity_level = 4  # that it was ended is no news
            self._session.run_async(None, self._feed, one.wait, None, options)
            self._idle.append(one)


def _see_off(idle: list[_Idle], leaving: list[_Idle]) -> None:
    """Send all back and wait for them: who ends a session holds Python's lock, which a worker needs to leave its callback."""
    for one in idle:
        one.wanted.set()
    leaving += idle
    idle.clear()
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and not all(one.gone for one in leaving):
        time.sleep(0.0005)
    leaving.clear()
