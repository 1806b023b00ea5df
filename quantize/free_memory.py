"""How much memory another process may take here."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import psutil

# Of a group's limit and use: cgroup v2, then v1.
_FILES = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that are free or can be freed, within the limits of this process's cgroups (v1 and v2).

    Args:
        root: where `proc/` and `sys/` are.
    """
    free = [int(psutil.virtual_memory().available)]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "-", "")
        # A container may see the path that its host knows: the limits of all groups above count, the root's last.
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            for mount, limit, used in _FILES:
                if mount == controllers:
                    folder = root / "sys/fs/cgroup" / mount / str(group).lstrip("/")
                    free += _rest(_read(folder / limit), _read(folder / used))
    return max(0, min(free))


def _rest(limit: str, used: str) -> list[int]:
    try:
        return [int(limit) - int(used)]
    except ValueError:  # "max", or no such file
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
