"""llama.cpp through llama-cpp-python, imported when it is first needed, its messages kept off stdout and stderr."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from typing import Any

from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.base.extras import explained

_LOG = logging.getLogger("prunella.llama_cpp")
# ggml's levels; 5 continues the line before.
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.ERROR, 4: logging.DEBUG, 5: logging.DEBUG}
_last_errors: list[str] = []


@functools.cache
def llama_library() -> Any:
    """The module `llama_cpp`, its log going to Python's logger `prunella.llama_cpp`.

    Raises:
        EngineError: it is not installed, or its native library cannot be loaded.
    """
    # libgomp reads this when it is loaded: threads that spin between operators are many times slower on loaded cores.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "100")
    try:
        import llama_cpp
    except ImportError as error:
        raise explained(error, "llama.cpp") from error
    except (OSError, RuntimeError) as error:
        raise EngineError(f"llama-cpp-python cannot load its library ({error}): install it again") from error
    llama_cpp.llama_log_set(_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache
def mtmd_library() -> Any:
    """The module `llama_cpp.mtmd_cpp` (libmtmd), its log going the same way.

    Raises:
        EngineError: this llama-cpp-python has none.
    """
    library = llama_library()
    try:
        from llama_cpp import mtmd_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"this llama-cpp-python has no libmtmd ({error}): pip install -U llama-cpp-python, or take the fast path "
            "(engine gguf, with onnxruntime)"
        ) from error
    for route in (mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
        route(_callback(library), ctypes.c_void_p(0))
    return mtmd_cpp


def last_error() -> str:
    """What llama.cpp complained about last, on one line."""
    return " ".join(_last_errors[-1].split()) if _last_errors else "it gave no reason"


@functools.cache
def _callback(library: Any) -> Any:
    """Kept alive by the cache: native code holds its address."""

    def log(level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        if level == 3:
            _last_errors.append(line)
            del _last_errors[:-8]
        if line:
            # An error that matters is raised by its caller, with the line in its message.
            _LOG.log(min(_LEVELS.get(level, logging.DEBUG), logging.INFO), "%s", line)

    return library.llama_log_callback(log)
