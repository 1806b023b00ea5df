"""How many threads an engine uses now: fewer while other programs keep them waiting for each other, all when the cores are free.

The threads of an engine meet after every product, hundreds of times a token. Where one of them is kept from its core, all others spin until
it comes back: beside one busy program two threads on two cores are slower than one (docs/threads.md has the figures).
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from prunella.device_runtime.base.cores import physical_cores, usable_cpus
from prunella.device_runtime.base.cpu_load import CpuLoad, CpuMeter

WINDOW = 0.15  # seconds of an engine's runs over which its threads' waiting is judged
_READING = 0.05  # seconds of runs after which the counters are read, which takes 0.1 ms, and are enough where others are seen on the cores
_PAUSE = (
    0.05  # seconds without a run that do not count: what this process waits for then is none of the engine's
)
_SHORTEST = 0.15  # seconds over which the cores' use is known: /proc/stat is exact to 0.01
WAITING = 0.4  # of a core: what the threads wait for together, from which on fewer are faster; beside one busy loop it is 0.67 and more
_LACKING = 0.5  # the same, where it is only known what others use, or judged sooner
_SPARE = 0.4  # of a core, that may be in use where it is taken for free
_PROVEN = 1.0  # seconds after which one thread more has stood the test
_HOLD, _MOST_HOLD = 0.5, 8.0  # seconds until cores that look free are tried again; doubled while they are not
_RETRY, _MOST_RETRY = (
    4.0,
    64.0,
)  # of runs, until cores that look busy are tried: their work may have less right to them


class AdaptiveThreads:
    """The number of threads, as a state machine that is told when the engine runs. Used as a context manager around each run.

    It takes fewer as soon as the threads wait for a core, however it comes about; one more when the machine says that a core is free, and now
    and then without it, as work of lower priority makes room. What did not help is tried again later and later.

    Args:
        most: threads, 1 or more.
        adapt: False: always `most`.
        read: the machine's counters.
        processors: that this process may use.

    Attributes:
        count: threads to use in the next run, 1 to `most`.
        fewest: that were used so far.
        adapts: whether `count` may change.
    """

    def __init__(
        self,
        most: int,
        *,
        adapt: bool = True,
        read: Callable[[], CpuLoad] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        processors: int | None = None,
    ) -> None:
        self.most = self.count = self.fewest = most
        self.adapts = adapt and most > 1
        self._read = read or CpuMeter().read
        self._clock = clock
        self._processors = processors or _processors()
        self._read_last = self._since = self._read() if self.adapts else CpuLoad(0.0)
        self._ran = 0.0  # seconds of runs since the last reading
        self._judged_ran = self._judged_waited = 0.0  # since the last judgement
        self._start = self._end = self._changed = self._since.at
        self._ran_unchanged = 0.0
        self._failed = -math.inf
        self._free: float | None = None  # processors, as far as it was last seen
        self._trial = ""  # one thread more, not yet proven: "free" or "busy", as the core looked
        self._hold, self._retry = _HOLD, _RETRY

    def __enter__(self) -> None:
        if self.adapts:
            self._start = self._clock()
            if self._start - self._end > _PAUSE:
                self._begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.adapts:
            self._end = self._clock()
            self._ran += self._end - self._start
            if self._ran >= _READING:
                self._count_waiting()

    def _begin(self) -> None:
        """Behind a pause, in which a core may have become free."""
        now = self._read()
        self._see(now)
        self._rise(now.at)
        self._read_last, self._ran = now, 0.0

    def _count_waiting(self) -> None:
        now = self._read()
        if now.waited is not None and self._read_last.waited is not None:
            self._judged_waited += now.waited - self._read_last.waited
        self._judged_ran += self._ran
        self._ran_unchanged += self._ran
        self._read_last, self._ran = now, 0.0
        self._see(now)
        taken = (
            0.0 if self._free is None else self.count - self._free
        )  # of what the threads could use, by others
        lacking = taken if now.waited is None else self._judged_waited / self._judged_ran
        waits = self.count > 1 and lacking > (_LACKING if now.waited is None else WAITING)
        if self._judged_ran >= WINDOW or (waits and min(taken, lacking) > _LACKING):
            self._judged_ran = self._judged_waited = 0.0
            if waits:
                self._fail(now.at)
                self._change(max(1, min(self.count - 1, int(self.count - lacking))), now.at)
            else:
                self._prove(now.at)

    def _prove(self, now: float) -> None:
        """The threads do not wait."""
        if self._trial and now - self._changed >= _PROVEN:
            self._trial, self._hold, self._retry = "", _HOLD, _RETRY
        self._rise(now)

    def _rise(self, now: float) -> None:
        free = self._free
        if self.count == self.most:
            return
        if free is not None and free >= self.count + 1 - _SPARE:
            if now - self._failed >= self._hold:
                self._change(min(self.most, int(free + _SPARE)), now)
                self._trial = "free"
        elif self._ran_unchanged >= self._retry:
            self._change(self.count + 1, now)
            self._trial = "busy"

    def _fail(self, now: float) -> None:
        """The threads wait. Where they are as many as were tried last, that is tried later the next time."""
        if self._trial == "free":
            self._hold = min(2 * self._hold, _MOST_HOLD)
        elif self._trial == "busy":
            self._retry = min(2 * self._retry, _MOST_RETRY)
        self._trial, self._failed = "", now

    def _change(self, count: int, now: float) -> None:
        if count != self.count:
            self.count, self._changed, self._ran_unchanged = count, now, 0.0
            self._judged_ran = self._judged_waited = 0.0
            self.fewest = min(self.fewest, count)

    def _see(self, now: CpuLoad) -> None:
        """Processors that others left since the last time; as before where that is too short ago to say."""
        wall = now.at - self._since.at
        if wall >= _SHORTEST and now.others is not None and self._since.others is not None:
            self._free = self._processors - (now.others - self._since.others) / wall
            self._since = now


def engine_threads(asked: int | None, bundle: int) -> AdaptiveThreads:
    """The threads of an engine that is opened.

    Args:
        asked: by whoever opens it: so many, always; 0: at most one per physical core; None: nor more than the bundle says.
        bundle: what the bundle says; 0: one per physical core.
    """
    if asked:
        return AdaptiveThreads(asked, adapt=False)
    most = physical_cores()
    return AdaptiveThreads(min(bundle or most, most) if asked is None else most)


def _processors() -> int:
    return len(usable_cpus()) if sys.platform == "linux" else os.cpu_count() or 1
