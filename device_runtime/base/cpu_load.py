"""What the processors of this machine do beside this process: counters that an engine compares while it runs."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from prunella.device_runtime.base.cores import usable_cpus

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # of /proc/stat, a second


@dataclass(frozen=True)
class CpuLoad:
    """Counters in seconds since some start; only differences mean something.

    Attributes:
        at: by the clock on the wall.
        others: processors' time of all other processes, on the processors that this one may use; None where it cannot be told.
        waited: that the threads of this process were ready to run and had no processor; None where it cannot be told.
    """

    at: float
    others: float | None = None
    waited: float | None = None


class CpuMeter:
    """Reads the counters: on Linux two kinds of files in /proc, about 0.1 ms; elsewhere psutil, which tells no waiting.

    Args:
        root: where `proc/` is.
        niced: count what runs at lower priority as well; by default where this process is itself niced. Who is not niced takes the
            processor from such work.
    """

    def __init__(self, root: Path = Path("/"), *, niced: bool | None = None) -> None:
        self._stat, self._tasks = str(root / "proc/stat"), str(root / "proc/self/task")
        self._niced = _is_niced() if niced is None else niced
        self._linux = sys.platform == "linux"
        self._threads: dict[str, float] = {}
        self._waited = 0.0

    def read(self) -> CpuLoad:
        """The counters now."""
        now = time.perf_counter()
        if not self._linux:
            return CpuLoad(now, others=_others_by_psutil())
        return CpuLoad(now, others=self._others(), waited=self._waiting())

    def _others(self) -> float | None:
        """Of the file's columns: user, nice, system, idle, iowait, irq, softirq, steal; a guest's time is in user."""
        allowed = {b"cpu%d" % cpu for cpu in usable_cpus()}
        busy = total = 0
        try:
            for line in _bytes(self._stat).splitlines():
                name, _, numbers = line.partition(b" ")
                if name in allowed:
                    columns = [int(number) for number in numbers.split()[:8]]
                    used = sum(columns) - columns[3] - columns[4]
                    busy += used if self._niced else used - columns[1]
                    total += sum(columns)
                elif not name.startswith(b"cpu"):
                    break
        except (OSError, ValueError, IndexError):
            return None
        return busy / _TICKS - time.process_time() if total else None

    def _waiting(self) -> float | None:
        """Sum over this process's threads of the second number of `schedstat`; threads that have ended keep what they had."""
        try:
            with os.scandir(self._tasks) as threads:
                names = [thread.name for thread in threads]
            for name in names:
                try:
                    waited = int(_bytes(f"{self._tasks}/{name}/schedstat").split()[1]) / 1e9
                except OSError:  # it has just ended, or the kernel does not count
                    continue
                self._waited += waited - self._threads.get(name, waited)
                self._threads[name] = waited
        except (OSError, ValueError, IndexError):
            return None
        return self._waited if self._threads else None


def _bytes(path: str) -> bytes:
    """All of a file of the kernel's. Several times as fast as pathlib, for what is read while a token waits."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 1 << 20)
    finally:
        os.close(file)


def _is_niced() -> bool:
    return hasattr(os, "getpriority") and os.getpriority(os.PRIO_PROCESS, 0) > 0


def _others_by_psutil() -> float | None:
    import psutil  # compiled; Linux tells the same in files

    times = psutil.cpu_times()
    return float(sum(times) - times.idle - time.process_time())
