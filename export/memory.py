"""What an export takes in memory, said before the work: models are exported whole."""

from __future__ import annotations

import logging
from pathlib import Path

from prunella.device_runtime.base.errors import CheckpointError
from prunella.quantize.bundle_recipe import BundleRecipe
from prunella.quantize.free_memory import free_memory, whole_memory
from prunella.speech_llm.checkpoint import saved_bytes
from prunella.speech_llm.load import resolve
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_folder import float_bytes

# Through the peaks of exports of two sizes (docs/quantization.md): bytes at least, and for each byte of weights in float32.
_PEAKS = {"onnx": (0.4e9, 4.6), "gguf": (0.9e9, 1.75)}
_LOG = logging.getLogger(__name__)


def export_bytes(weights: float, engines: tuple[str, ...]) -> float:
    """About what exporting takes at its peak, of a model of so many bytes in float32."""
    return max(least + times * weights for least, times in map(_PEAKS.__getitem__, engines))


def check_export_memory(model: SpeechLLM | str | Path, recipe: BundleRecipe) -> None:
    """Refuse what cannot be exported in the memory that there is, and warn of what is larger than what is free.

    Args:
        model: in memory, or anything `speech_llm.load` takes.
        recipe: that it is exported in.

    Raises:
        CheckpointError: it takes more than all the memory here.
    """
    weights = saved_bytes(model) if isinstance(model, SpeechLLM) else float_bytes(resolve(model))
    needed, memory, free = export_bytes(weights, recipe.engines), whole_memory(), free_memory()
    held = weights if isinstance(model, SpeechLLM) else 0.0  # is here already
    sizes = f"{weights / 1e9:.1f} GB of weights in float32 take about {needed / 1e9:.1f} GB while they are exported as {recipe.name}"
    if needed > memory:
        smaller = export_bytes(weights, ("gguf",))
        other = f", or a recipe of llama.cpp ({smaller / 1e9:.1f} GB)" if "onnx" in recipe.engines else ""
        raise CheckpointError(
            f"{sizes}, and this machine or container has {memory / 1e9:.1f} GB: take one with more{other}; models are not "
            "exported layer by layer yet (cut layers with `prunella prune` first, which is)"
        )
    if needed - held > free:
        _LOG.warning("%s, and %.1f GB are free: it may be killed; close what takes memory", sizes, free / 1e9)
