"""ONNX Runtime, imported when it is first needed."""

from __future__ import annotations

from typing import Any

from prunella.device_runtime.base.extras import explained


def import_onnxruntime() -> Any:
    """The module.

    Raises:
        EngineError: it is not installed, or cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise explained(error, "the engine onnx") from error
    return onnxruntime
