"""ONNX Runtime, imported when it is first needed."""

from __future__ import annotations

from typing import Any

from prunella.device_runtime.base.extras import explained
from prunella.device_runtime.base.heap import return_large_blocks


def import_onnxruntime() -> Any:
    """The module.

    Raises:
        EngineError: it is not installed, or cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise explained(error, "the engine onnx") from error
    return_large_blocks()
    return onnxruntime


def shrinking(runtime: Any) -> Any:
    """`RunOptions` of a run that takes much: the session gives that memory back behind it, and keeps what its weights take."""
    options = runtime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
