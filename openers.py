"""Opens models for evaluation, which lies below the room that knows them. `prunella/__init__.py` imports this module.

Nothing is imported before a model is asked for: a bundle is measured without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunella.opener_registry import Opener, register_opener


def open_model(name: str, **options: Any) -> Any:
    """`torch_engine.open_model_transcriber`."""
    from prunella.speech_llm.torch_engine import open_model_transcriber

    return open_model_transcriber(name, **options)


def find_model(name: str) -> Path:
    """`load.resolve`: `reference` or a Hub id may be other weights tomorrow, its folder tells."""
    from prunella.speech_llm.load import resolve

    return resolve(name)


register_opener("model", Opener(open_model, find_model))
