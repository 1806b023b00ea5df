"""Two names trade places in one step where the system can: no moment in which one of them is missing."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # of Linux
_RENAME_SWAP = 2  # of macOS


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically. False where system or file system cannot: then nothing was done."""
    call = _swap()
    return call is not None and call(os.fsencode(one), os.fsencode(other)) == 0


@functools.cache
def _swap() -> Callable[[bytes, bytes], int] | None:
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            renameat2 = library.renameat2
            return lambda one, other: int(
                renameat2(
                    ctypes.c_int(_AT_FDCWD),
                    one,
                    ctypes.c_int(_AT_FDCWD),
                    other,
                    ctypes.c_uint(_RENAME_EXCHANGE),
                )
            )
        if sys.platform == "darwin":
            renamex_np = library.renamex_np
            return lambda one, other: int(renamex_np(one, other, ctypes.c_uint(_RENAME_SWAP)))
    except (OSError, AttributeError, TypeError):  # no such call: an older libc, or Windows
        pass
    return None
