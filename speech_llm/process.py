"""Settings of a whole process that works with models in PyTorch: a program makes them, importing prunella does not."""

from __future__ import annotations

import ctypes
import logging as standard_logging
import sys

from transformers.utils import logging

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP = 1 << 30
_LARGE = 16 << 20  # bytes: weights of what is larger than memory, and few activations


def tune() -> None:
    """Set memory and logging as the `prunella` command has them; whoever uses prunella as a library may do the same.

    transformers shows neither advice nor progress bars (prunella has its own), torch.onnx no warnings about operators
    that it does not know.
    """
    keep_freed_memory()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers has no types there
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    standard_logging.getLogger("torch.onnx").setLevel(standard_logging.ERROR)


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep large freed blocks; returns whether it does.

    By default every large activation is mapped and returned anew, and the page faults cost several times the arithmetic.
    """
    return _allow(_KEEP)


def return_freed_memory() -> bool:
    """Undo it for large blocks: what is read layer by layer has no memory to keep."""
    return _allow(_LARGE)


def _allow(size: int) -> bool:
    """Let malloc keep freed blocks of so many bytes."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, size) and mallopt(_M_TRIM_THRESHOLD, size))
