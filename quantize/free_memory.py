"""How much memory there is here, and how much of it another process may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

# Of a group's limit and use: cgroup v2, then v1.
_FILES = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
_CACHES = ("inactive_file", "total_inactive_file")  # counted as used, and given back when it is needed


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that are free or can be freed, within the limits of this process's cgroups (v1 and v2).

    Args:
        root: where `proc/` and `sys/` are.
    """
    free = [int(psutil.virtual_memory().available)]
    for folder, limit, used in _groups(root):
        if limit.isdecimal() and used.isdecimal():  # not "max", and there
            free.append(int(limit) - int(used) + _cache(folder))
    return max(0, min(free))


def whole_memory(root: Path = Path("/")) -> int:
    """Bytes that a process here could ever have, swap included: what is larger cannot be loaded, whatever is closed."""
    limits = [int(limit) for _, limit, _ in _groups(root) if limit.isdecimal()]
    return min([int(psutil.virtual_memory().total), *limits]) + int(psutil.swap_memory().total)


def _groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Folder, limit and use of every group above this process."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "-", "")
        # A container may see the path that its host knows: the limits of all groups above count, the root's last.
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            for mount, limit, used in _FILES:
                if mount == controllers:
                    folder = root / "sys/fs/cgroup" / mount / str(group).lstrip("/")
                    yield folder, _read(folder / limit), _read(folder / used)


def _cache(folder: Path) -> int:
    rows = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
    found = [rows[name] for name in _CACHES if rows.get(name, "").isdecimal()]
    return max(map(int, found), default=0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
