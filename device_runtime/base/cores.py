"""How many threads an engine gets."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from prunella.device_runtime.base.errors import UsageError

_MOST_THREADS = 4  # per logical processor: more only wait for each other, and 99 on two cores never end


def physical_cores() -> int:
    """Number of physical CPU cores this process may use, by affinity and by the quota of its cgroup; at least 1."""
    if sys.platform != "linux":
        import psutil  # compiled; Linux tells the same in files, and affinity beside it

        return count_cores(physical=psutil.cpu_count(logical=False), logical=os.cpu_count())
    allowed = usable_cpus()
    return count_cores(
        core_of={cpu: _core(cpu) for cpu in allowed}, logical=len(allowed), quota=cgroup_quota()
    )


def usable_cpus(isolated: Path = Path("/sys/devices/system/cpu/isolated")) -> frozenset[int]:
    """Logical processors over which Linux spreads the threads of this process: its affinity, without `isolcpus`.

    Where its affinity is isolated processors alone, all its threads stay on one of them: it is the only one.
    """
    allowed = os.sched_getaffinity(0)
    spread = allowed - _cpu_list(_read(isolated))
    return frozenset(spread or sorted(allowed)[:1])


def count_cores(
    *,
    core_of: Mapping[int, str | None] | None = None,
    physical: int | None = None,
    logical: int | None = None,
    quota: float | None = None,
) -> int:
    """Cores that are worth a thread each; at least 1.

    Args:
        core_of: the physical core of every logical processor that this process may run on; None where it is not told.
        physical: cores of the machine, used where `core_of` is not given.
        logical: processors, used where neither tells.
        quota: processors' worth of time that a container may use.
    """
    count = physical or logical or 1
    if core_of:
        count = len(core_of) if None in core_of.values() else len(set(core_of.values()))
    # Rounded down: the threads of an engine wait for each other, and one that is throttled stops all.
    return max(1, count if quota is None else min(count, int(quota)))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that this process's cgroups (v1 and v2) leave it; None where they set no limit.

    Args:
        root: where `proc/` and `sys/` are.
    """
    quotas: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "", "")
        # A container may see the path that its host knows: the limits of all groups above count, the root's last.
        groups = [PurePosixPath(path), *PurePosixPath(path).parents]
        for group in groups:
            inside = str(group).lstrip("/")
            if not controllers:
                limit, _, period = _read(root / "sys/fs/cgroup" / inside / "cpu.max").partition(" ")
                quotas += _quota(limit, period)
            elif "cpu" in controllers.split(","):
                for mount in ("cpu", controllers):
                    folder = root / "sys/fs/cgroup" / mount / inside
                    quotas += _quota(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
    return min(quotas, default=None)


def most_threads() -> int:
    """More make no engine faster here, and far more stop it."""
    return _MOST_THREADS * (os.cpu_count() or 1)


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no engine can use here; None and 0 leave it to the engine.

    Raises:
        UsageError: fewer than 0, or far more than the machine has processors.
    """
    most = most_threads()
    if threads is not None and not 0 <= threads <= most:
        raise UsageError(
            f"{threads} threads are not possible: give 1 to {most}, or 0 for one per physical core"
        )


def _cpu_list(text: str) -> set[int]:
    """As the kernel writes it: `2-3,6`."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _core(cpu: int) -> str | None:
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    package, core = _read(topology / "physical_package_id"), _read(topology / "core_id")
    return f"{package}/{core}" if core else None


def _quota(quota: str, period: str) -> list[float]:
    try:
        limit, of = float(quota), float(period)
    except ValueError:  # "max", or no such file
        return []
    return [limit / of] if limit > 0 and of > 0 else []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
