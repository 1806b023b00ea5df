"""Which hardware a bundle asks for: execution providers of ONNX Runtime, offload of llama.cpp.

What is asked for and is not there is announced, never silently replaced; `require_all` makes it an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunella.device_runtime.base.cache import writable_cache
from prunella.device_runtime.base.errors import EngineError, UsageError
from prunella.device_runtime.base.onnx_errors import first_line
from prunella.device_runtime.bundle import OptionValue, Provider

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_LOG = logging.getLogger(__name__)
# Paths in options may begin with ~; folders that ONNX Runtime writes into must exist.
_CACHE = "~/.cache/prunella"  # as target profiles name ours
_FOLDERS = ("trt_engine_cache_path", "trt_timing_cache_path", "ModelCacheDirectory", "cache_dir")
announced: set[Missing] = set()
_quiet: ContextVar[bool] = ContextVar("unannounced", default=False)


@dataclass(frozen=True)
class Missing:
    """Hardware that a bundle asks for and this process does not use."""

    name: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name} is not used: {self.reason}; {self.remedy}"


def open_session(
    runtime: Any, path: Path, settings: Any, providers: Sequence[Provider] = ()
) -> tuple[Any, tuple[Missing, ...]]:
    """Load a graph on the first of `providers` that can run here, the processor last.

    Args:
        runtime: the module `onnxruntime`.
        path: of the graph.
        settings: its `SessionOptions`.
        providers: in order of preference; none for the processor alone.

    Returns:
        The session, and what was asked for and is not in it.

    Raises:
        EngineError: the processor cannot run the graph either.
    """
    wanted = [provider for provider in providers if provider.name != CPU]
    present = runtime.get_available_providers()
    usable = [provider for provider in wanted if provider.name in present]
    missing = [
        _missing(provider.name, f"onnxruntime {runtime.__version__} here has only {', '.join(present)}")
        for provider in wanted
        if provider not in usable
    ]
    try:
        session = _create(runtime, path, settings, usable)
    except Exception as error:  # onnxruntime's classes derive from nothing narrower
        if not usable:
            raise _cannot_load(runtime, path, error) from error
        missing += [_missing(provider.name, first_line(error)) for provider in usable]
        usable = []
        try:
            session = _create(runtime, path, settings, [])
        except Exception as second:
            raise _cannot_load(runtime, path, second) from second
    # Where a provider's libraries are not found, onnxruntime drops it with nothing but a line in its own log.
    active = session.get_providers()
    missing += [
        _missing(provider.name, "onnxruntime could not load its libraries (CUDA, cuDNN or TensorRT)")
        for provider in usable
        if provider.name not in active
    ]
    return session, tuple(missing)


def for_decoder(providers: Sequence[Provider]) -> tuple[Provider, ...]:
    """Those with kernels for the decoder's operators (GroupQueryAttention, MatMulNBits).

    TensorRT, CoreML, OpenVINO's NPU and QNN have none: they would take the graph apart, and a token would travel between two processors at
    every layer. They are for the audio encoder.
    """
    return tuple(provider for provider in providers if provider.name in (CUDA, CPU))


def announce(missing: Sequence[Missing]) -> tuple[Missing, ...]:
    """Log a warning for each, once a process, which Python writes to stderr; returns them without repetitions."""
    unique = tuple(dict.fromkeys(missing))
    for entry in unique:
        if entry not in announced and not _quiet.get():
            announced.add(entry)
            _LOG.warning("%s", entry)
    return unique


@contextlib.contextmanager
def unannounced(quiet: bool = True) -> Iterator[None]:
    """Nothing is announced inside: what is built for another machine is not expected to find its hardware here."""
    token = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


def require_all(engine: object) -> None:
    """Refuse an engine that runs on less than its bundle asks for (`--strict`).

    Raises:
        EngineError: something is missing.
    """
    missing: tuple[Missing, ...] = getattr(engine, "missing", ())
    if missing:
        raise EngineError(f"{missing[0]}; or run it without --strict")


def missing_offload(library: Any, options: Mapping[str, OptionValue]) -> tuple[Missing, ...]:
    """Whether a llama.cpp that was built for the processor alone is asked to use a GPU."""
    if not options.get("n_gpu_layers") or library.llama_supports_gpu_offload():
        return ()
    return (
        Missing(
            "llama.cpp's GPU offload",
            "this llama-cpp-python was built for the processor",
            "install it again with the CMAKE_ARGS that `prunella targets show NAME` gives",
        ),
    )


def _create(runtime: Any, path: Path, settings: Any, providers: Sequence[Provider]) -> Any:
    names = [(provider.name, _ready(provider.options)) for provider in providers]
    # Its own fallback prints to stdout, which is for results.
    return runtime.InferenceSession(str(path), settings, providers=[*names, (CPU, {})], enable_fallback=0)


def _ready(options: Mapping[str, OptionValue]) -> dict[str, str]:
    """As onnxruntime reads them: text, truths as 1 and 0."""
    ready = {}
    for key, value in options.items():
        if isinstance(value, bool):
            value = int(value)
        if key in _FOLDERS:
            value = str(_folder(str(value)))
        elif isinstance(value, str) and value.startswith("~"):
            value = os.path.expanduser(value)  # noqa: PTH111 pathlib's raises where there is no home
        ready[key] = str(value)
    return ready


def _folder(wanted: str) -> Path:
    """Where what a provider compiles is kept: in our cache where it is meant to be there, wherever that is."""
    try:
        if wanted.startswith(f"{_CACHE}/"):
            return writable_cache(*wanted.removeprefix(f"{_CACHE}/").split("/"))
        folder = Path(wanted).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except (OSError, RuntimeError, UsageError) as error:
        _LOG.warning("what is compiled for this hardware is not kept, and made anew at each start: %s", error)
        return Path(tempfile.mkdtemp(prefix="prunella-"))


def _missing(name: str, reason: str) -> Missing:
    return Missing(name, reason, "`prunella targets check NAME` says what to install")


def _cannot_load(runtime: Any, path: Path, error: Exception) -> EngineError:
    return EngineError(
        f"onnxruntime {runtime.__version__} cannot load {path} ({first_line(error)}): "
        "pip install -U onnxruntime, or export the bundle again"
    )
