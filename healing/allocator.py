"""The malloc under a training run, which has to be chosen before a process starts."""

from __future__ import annotations

import ctypes.util
import os
import sys

SWITCH = "PRUNELLA_TCMALLOC"


def restart_with_tcmalloc() -> None:
    """Start this program once more with tcmalloc, where it is installed (Debian's libtcmalloc-minimal4); else return.

    The process is replaced: same process id, same words, LD_PRELOAD set. `PRUNELLA_TCMALLOC=0` keeps it as it is. Every
    batch has another length, so that glibc's lists of freed blocks grow until searching them takes time in every step.
    """
    loaded = os.environ.get("LD_PRELOAD", "")
    if os.environ.get(SWITCH) == "0" or "malloc" in loaded or not sys.platform.startswith("linux"):
        return
    library = ctypes.util.find_library("tcmalloc_minimal")
    if library is None:
        return
    os.environ["LD_PRELOAD"] = f"{library} {loaded}".strip()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # this very program
