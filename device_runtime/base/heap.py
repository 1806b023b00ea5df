"""How the memory of this process grows."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys

import numpy as np

from prunella.device_runtime.base.arrays import Float32

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_THRESHOLD = 128 * 1024  # bytes, glibc's own at the start


def return_large_blocks() -> None:
    """Have glibc give blocks of 128 KiB and more back as soon as they are freed; elsewhere nothing.

    By itself it raises that size with the largest block that was ever freed, and what weights were packed from stays in the
    heap in pieces: 8 of 172 MB of a model of 66 MB, measured with `research/memory_by_part.py`.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)


def lazy_zeros(shape: tuple[int, ...]) -> Float32:
    """Float32 zeros whose pages take memory as they are written to.

    Not so with numpy's own: it asks for huge pages, of which the first byte takes 2 MB.
    """
    count = math.prod(shape)
    # Not shared with a child, where there are children (the default).
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, max(4 * count, 1), **private)
    advice = getattr(mmap, "MADV_NOHUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(advice)
    return np.frombuffer(pages, np.float32, count).reshape(shape)
