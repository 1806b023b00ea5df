"""Under which conditions a figure was measured, and the peak memory of this process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil

from prunella._version import __version__

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "llama-cpp-python",
    "torch",
    "transformers",
    "faster-whisper",
    "ctranslate2",
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def conditions() -> dict[str, Any]:
    """What a reader needs to repeat a measurement here: machine, versions, load, clock governor, temperature.

    JSON-ready; what this system does not tell is left out.
    """
    found = {
        "cpu": _cpu_model(),
        "cpu_cores": psutil.cpu_count(logical=False),
        "cpu_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "prunella": __version__,
        "versions": _versions(),
        "thread_variables": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
        "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "temperature_celsius": _hottest(),
        "throttle_count": _number(Path("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count")),
    }
    return {key: value for key, value in found.items() if value not in (None, "", {})}


def peak_memory_bytes() -> int | None:
    """Most memory this process ever held resident, or None where it cannot be told.

    Linux: VmHWM, which starts anew with the program; `ru_maxrss` there keeps the parent's peak across fork and exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource  # not on Windows
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others kilobytes


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    for key in ("model name", "Model", "Hardware"):
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _hottest() -> float | None:
    """Hottest thermal zone in degrees Celsius."""
    values = [_number(zone / "temp") for zone in Path("/sys/class/thermal").glob("thermal_zone*")]
    readable = [value for value in values if value is not None]
    return max(readable) / 1000 if readable else None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().split("\n", 1)[0].strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    line = _first_line(path)
    try:
        return int(line) if line else None
    except ValueError:
        return None
