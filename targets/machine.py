"""What this machine is, as far as target profiles ask."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

_TIMEOUT = 10  # seconds for a driver's tool


@dataclass(frozen=True)
class Machine:
    """Facts about a machine. Names are empty where the system does not tell them.

    Attributes:
        arch: as `platform.machine()`.
        os: as `platform.system()`.
        device_tree: model and compatible strings of the board.
        soc: name of the processor.
        gpus: names of NVIDIA cards.
        memory_mb: of RAM; 0 where unknown.
        l4t: release of Jetson Linux, such as "R36".
    """

    arch: str
    os: str
    device_tree: tuple[str, ...] = ()
    soc: str = ""
    gpus: tuple[str, ...] = ()
    memory_mb: int = 0
    l4t: str = ""


def read_machine(root: Path = Path("/")) -> Machine:
    """Look at this machine, without privileges; what cannot be read stays empty.

    Args:
        root: where `proc/`, `sys/` and `etc/` are.
    """
    system = platform.system()
    return Machine(
        arch=platform.machine(),
        os=system,
        device_tree=_device_tree(root),
        soc=_soc(root, system),
        gpus=_gpus(root),
        memory_mb=_memory_mb(root, system),
        l4t=_read(root / "etc/nv_tegra_release").removeprefix("#").strip().partition(" ")[0],
    )


def _device_tree(root: Path) -> tuple[str, ...]:
    found = []
    for name in ("model", "compatible"):
        text = _read(root / "proc/device-tree" / name)
        found += [part for part in text.split("\0") if part.strip()]
    return tuple(found)


def _soc(root: Path, system: str) -> str:
    if system == "Darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string")
    if system == "Windows":
        return platform.processor()
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    parts = [_read(root / "sys/devices/soc0" / name).strip() for name in ("family", "machine", "soc_id")]
    return " ".join(filter(None, parts))


def _gpus(root: Path) -> tuple[str, ...]:
    names = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        for line in _read(file).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                names.append(value.strip())
    if not names and shutil.which("nvidia-smi"):
        listed = _run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        names = [line.strip() for line in listed.splitlines() if line.strip()]
    return tuple(names)


def _memory_mb(root: Path, system: str) -> int:
    if system != "Linux":
        return int(psutil.virtual_memory().total // 10**6)
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024 // 10**6
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
