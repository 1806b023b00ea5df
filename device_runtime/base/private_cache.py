"""Small files in the cache that a later start believes: nobody but this user may have written them.

Everything here is quiet: where the cache cannot be trusted, read or written there is nothing in it, and the start does its
work anew.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from prunella.device_runtime.base.cache import writable_cache
from prunella.device_runtime.base.errors import UsageError

FOLDER = "start"  # in the cache, and in what `weights/cached.py` clears
_MOST_FILES = 64  # each some 100 kB; the oldest go
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder() -> Path | None:
    """The folder, made where it is missing; None where there is no cache that is this user's alone.

    It must belong to this user, and every folder above it to this user or root; none may be writable by group or others
    (above it, the sticky bit of /tmp will do). Windows has no such bits, and keeps others out of a user's profile by itself.
    """
    try:
        folder = Path(os.path.realpath(writable_cache())) / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder if _is_private(folder) else None
    except (OSError, UsageError, ValueError):
        return None


def read_private(name: str, most: int) -> bytes | None:
    """The content of a file of the folder; None: there is none, it is larger than `most` bytes, or others can write it."""
    folder = private_folder()
    if folder is None:
        return None
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        with os.fdopen(os.open(folder / name, flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or not _is_own(found) or found.st_size > most:
                return None
            return file.read(most)
    except OSError:
        return None


def write_private(name: str, content: bytes) -> None:
    """Write a file of the folder, whole or not at all, readable by this user alone; nothing, where that cannot be."""
    folder = private_folder()
    if folder is None:
        return
    from prunella.device_runtime.base.files import whole_file  # only where something is written

    with contextlib.suppress(OSError):
        with whole_file(folder / name, mode=0o600) as partial:
            partial.write_bytes(content)
        _forget_the_oldest(folder)


def _is_private(folder: Path) -> bool:
    if not hasattr(os, "geteuid"):
        return True
    if not stat.S_ISDIR(folder.lstat().st_mode) or not _is_own(folder.lstat()):
        return False
    for above in folder.parents:
        found = above.lstat()
        sticky = found.st_mode & stat.S_ISVTX
        if found.st_uid not in (0, os.geteuid()) or (found.st_mode & _OTHERS_WRITE and not sticky):
            return False
    return True


def _is_own(found: os.stat_result) -> bool:
    if not hasattr(os, "geteuid"):
        return True
    return found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_WRITE


def _forget_the_oldest(folder: Path) -> None:
    files = sorted(
        (file for file in folder.iterdir() if file.is_file()), key=lambda file: file.stat().st_mtime
    )
    for file in files[:-_MOST_FILES]:
        file.unlink(missing_ok=True)
