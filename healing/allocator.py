"""The malloc under a training run, which has to be chosen before a process starts."""

from __future__ import annotations

import ctypes.util
import os
import sys


def restart_with_tcmalloc() -> None:
    """Start this program once more with tcmalloc, where it is installed (Debian's libtcmalloc-minimal4); else return.

    Every batch has another length, so that glibc's lists of freed blocks grow until searching them shows in a profile of
    a step. jemalloc, told to keep what is freed, ran out of memory.
    """
    loaded = os.environ.get("LD_PRELOAD", "")
    library = ctypes.util.find_library("tcmalloc_minimal") if sys.platform.startswith("linux") else None
    if library is None or "malloc" in loaded:
        return
    os.environ["LD_PRELOAD"] = f"{library} {loaded}".strip()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # this very program
