"""Graphs as ONNX Runtime optimizes them, kept in the cache, so that a later start need not optimize them again.

Only graphs whose weights lie in files beside them, and on the processor alone. What is kept is some 100 kB: the weights stay
where they are, mapped into memory, so that processes share what they do not repack.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunella._version import __version__
from prunella.device_runtime.base import private_cache
from prunella.device_runtime.bundle import Bundle, Provider
from prunella.device_runtime.engines.providers import CPU, Missing, open_session

_MOST_BYTES = 16_000_000  # a graph without its weights has far less; one with them is not kept
_DIGEST = hashlib.sha256().digest_size
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def open_graph(
    runtime: Any, bundle: Bundle, name: str, settings: Any, providers: Sequence[Provider] = ()
) -> tuple[Any, tuple[Missing, ...]]:
    """As `open_session`, of a graph of a verified bundle.

    The first time it is optimized, and kept; later what was kept is loaded, where it is whole, nobody else can have written
    it, and it is of the same files, ONNX Runtime, prunella and processor.

    Args:
        runtime: the module `onnxruntime`.
        bundle: whose files were checked.
        name: the graph's, as the manifest has it.
        settings: its `SessionOptions`, which are not used again.
        providers: as `open_session`.

    Raises:
        BundleError, EngineError: the bundle has no such graph, or ONNX Runtime cannot load it.
    """
    graph = bundle.file(name)
    files = [[key, one.sha256] for key, one in sorted(bundle.manifest.files.items()) if key.startswith(name)]
    # Files that nobody has hashed could be anything: those of a bundle that is being made.
    known = all(digest for _, digest in files)
    apart = known and len(files) > 1 and graph.stat().st_size <= _MOST_BYTES  # its weights are not in it
    if apart and all(provider.name == CPU for provider in providers):
        key = json.dumps([files, __version__, runtime.__version__, _processor()])
        session = _open_kept(runtime, graph, settings, f"{hashlib.sha256(key.encode()).hexdigest()}.onnx")
        if session is not None:
            return session, ()
    return open_session(runtime, graph, settings, providers)


def _open_kept(runtime: Any, graph: Path, settings: Any, kept_as: str) -> Any | None:
    """A session; None: nothing can be kept, or there is some trouble, about which the bundle's own graph says more."""
    usual = settings.graph_optimization_level
    kept = private_cache.read_private(kept_as, _MOST_BYTES)
    try:
        if kept is None or hashlib.sha256(kept[_DIGEST:]).digest() != kept[:_DIGEST]:
            return _optimize(runtime, graph, settings, kept_as)
        if len(kept) == _DIGEST:  # what was optimized was too large
            return None
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it was done
        settings.add_session_config_entry(_WEIGHTS_FOLDER, str(graph.parent))
        return runtime.InferenceSession(kept[_DIGEST:], settings, providers=[CPU], enable_fallback=0)
    except Exception:  # onnxruntime's classes derive from nothing narrower
        settings.graph_optimization_level = usual
        return None


def _optimize(runtime: Any, graph: Path, settings: Any, kept_as: str) -> Any | None:
    folder = private_cache.private_folder()
    if folder is None:
        return None
    written = folder / f".{secrets.token_hex(4)}.onnx"
    settings.optimized_model_filepath = str(written)
    try:
        session = runtime.InferenceSession(str(graph), settings, providers=[CPU], enable_fallback=0)
        with contextlib.suppress(OSError):
            content = written.read_bytes() if written.stat().st_size <= _MOST_BYTES - _DIGEST else b""
            private_cache.write_private(kept_as, hashlib.sha256(content).digest() + content)
        return session
    finally:
        settings.optimized_model_filepath = ""
        written.unlink(missing_ok=True)


def _processor() -> str:
    """What of a processor decides how a graph is laid out: its kind, and what it can."""
    if sys.platform != "linux":
        return f"{platform.machine()} {platform.processor()}"
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as file:
            able = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        able = ""
    return f"{platform.machine()} {able}"
