"""Many inputs, one property: nothing is raised that is not meant, nothing hangs, no memory stays behind."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tqdm import tqdm

COUNT = int(os.environ.get("FUZZ", "1000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
KEPT = Path(os.environ.get("FUZZ_KEPT", "build/fuzz"))
SECONDS = 5.0  # of processor time, for one input; others on the machine do not count
_STUCK = 120  # seconds by the clock: nothing computes, and nothing will come
GROWTH = 64 << 20  # bytes that all inputs together may leave behind, or take at their peak
_VARIATIONS = 9  # of each that hypothesis draws, which costs more than all of them
_ROUND = 500 if COUNT <= 1_000 else 5_000  # inputs of one hypothesis run, which remembers what it has tried

_PHASES = (Phase.generate, Phase.shrink)


class HangError(BaseException):
    """Not an Exception, so that nothing under test catches it."""


def fuzz(
    name: str,
    inputs: SearchStrategy[Any],
    check: Callable[[Any], None],
    vary: Callable[[Any, Random], Any],
    finish: Callable[[Any], Any] = lambda value: value,
) -> None:
    """Check `FUZZ` inputs. One that fails is shrunk, shown, and kept as `build/fuzz/NAME.txt`.

    Args:
        name: of what is tried.
        inputs: a tenth of them.
        check: the property; raises if it does not hold.
        vary: makes one more of one that was drawn.
        finish: what is done to each before it is checked, such as sealing it.
    """
    slowest, done, before, growth, peak = 0.0, 0, 0, 0, 0
    progress = tqdm(total=COUNT, desc=name, file=sys.__stderr__, disable=COUNT <= 1_000, mininterval=10)

    def each(drawn: Any, random_seed: int) -> None:
        random = Random(random_seed)
        one(finish(drawn))
        for _ in range(_VARIATIONS):
            one(finish(vary(drawn, random)))

    def one(value: Any) -> None:
        nonlocal slowest, done
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, _STUCK)
        try:
            check(value)
        except BaseException:
            KEPT.mkdir(parents=True, exist_ok=True)
            (KEPT / f"{name}.txt").write_text(ascii(value) + "\n")  # the last one kept is the smallest
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.process_time() - began)
        done += 1
        progress.update()

    kept = [(kind, signal.signal(kind, _hangs)) for kind in (signal.SIGPROF, signal.SIGALRM)]
    began = time.perf_counter()
    try:
        while done < COUNT:
            count = -(-min(_ROUND, COUNT - done) // (1 + _VARIATIONS))
            rounded = settings(
                max_examples=count,
                deadline=None,
                database=None,
                phases=_PHASES,
                suppress_health_check=list(HealthCheck),
            )(given(inputs, st.integers(0, 2**32))(each))
            seed(SEED + done)(rounded)()
            settled = _settled()
            if before:
                growth, peak = max(growth, settled - before), max(peak, _peak() - before)
                assert growth < GROWTH, f"{growth >> 20} MB stayed behind after {done} inputs"
                assert peak < GROWTH, f"{peak >> 20} MB more at the peak, by {done} inputs"
            else:
                before = settled
            progress.set_postfix_str(f"+{growth >> 20} MB, +{peak >> 20} MB at the peak")
            _forget_peak()
    finally:
        progress.close()
        for kind, handler in kept:
            signal.signal(kind, handler)
    if COUNT > 1_000:
        sys.__stderr__.write(
            f"{name}: {done} inputs in {time.perf_counter() - began:.0f} s, the slowest {slowest:.2f} s of processor "
            f"time; memory +{growth / 1e6:.1f} MB, at its peak +{peak / 1e6:.1f} MB\n"
        )


def _hangs(number: int, _: object) -> None:
    what = f"{SECONDS:g} s of processor time" if number == signal.SIGPROF else f"{_STUCK} s"
    raise HangError(f"one input took more than {what}")


def _settled() -> int:
    """Bytes resident once garbage is collected and what malloc kept is given back."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
    return psutil.Process().memory_info().rss


def _peak() -> int:
    """Bytes resident at most since `_forget_peak`; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _forget_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
