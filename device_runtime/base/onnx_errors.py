"""What ONNX Runtime raises, as errors of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prunella.device_runtime.base.errors import EngineError


@contextlib.contextmanager
def run_errors(part: str) -> Iterator[None]:
    """What ONNX Runtime raises while `part` runs becomes an `EngineError`."""
    try:
        yield
    except Exception as error:  # onnxruntime's classes derive from nothing narrower
        raise EngineError(
            f"ONNX Runtime cannot run {part} ({first_line(error)}): free some memory, or use another recipe or engine"
        ) from error


def first_line(error: Exception) -> str:
    """The rest of such a text is addresses in its source."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
