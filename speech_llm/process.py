"""Settings of the whole process, made when `prunella.speech_llm` is imported."""

from __future__ import annotations

import ctypes
import logging as standard_logging
import sys

from transformers.utils import logging

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP = 1 << 30


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep large freed blocks; returns whether it does.

    By default every large activation is mapped and returned anew, and the page faults cost several times the
    arithmetic (once, on 2 loaded cores: 78 s against 15 s for the same forward passes).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(_M_MMAP_THRESHOLD, _KEEP) and mallopt(_M_TRIM_THRESHOLD, _KEEP)
    )


keep_freed_memory()
# prunella shows its own progress; transformers' bars and advice would only bury it.
logging.set_verbosity_error()
logging.disable_progress_bar()
# The ONNX exporter warns about every torchvision operator that it does not know.
standard_logging.getLogger("torch.onnx").setLevel(standard_logging.ERROR)
