"""Parts of a speech LLM that a target stores otherwise than a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prunella.device_runtime.base.errors import UsageError
from prunella.quantize.bundle_recipe import BundleRecipe
from prunella.quantize.recipes import FLOAT, INT8_BLOCKS, INT8_ROWS, WeightFormat

# What "float" and "int8" mean for each part that a target may name.
_FORMATS: dict[str, dict[str, WeightFormat]] = {
    "audio_encoder": {"float": FLOAT, "int8": INT8_ROWS},
    "embed_tokens": {"float": FLOAT, "int8": INT8_ROWS},
    "head": {"float": FLOAT, "int8": INT8_BLOCKS},
}


def with_precision(recipe: BundleRecipe, precision: Mapping[str, str]) -> BundleRecipe:
    """The recipe, with single parts stored as a bundle's `precision` says; of llama.cpp's, the audio encoder alone.

    Raises:
        UsageError: a part or a precision that does not exist.
    """
    formats = {}
    for part, value in precision.items():
        if value not in _FORMATS.get(part, {}):
            known = "; ".join(f"{name}: {' or '.join(words)}" for name, words in _FORMATS.items())
            raise UsageError(f"precision '{part} = {value}' does not exist: a target may say {known}")
        formats[part] = _FORMATS[part][value]
    onnx, gguf = recipe.onnx, recipe.gguf
    if onnx is not None and onnx.name != "fp32":
        # A projector runs where the encoder does.
        projector = FLOAT if formats.get("audio_encoder") == FLOAT else onnx.projector
        apart = "embed_tokens" in formats
        onnx = replace(onnx, **formats, projector=projector, tied=onnx.tied and not apart)  # type: ignore[arg-type]
    if gguf is not None and not gguf.is_float and "audio_encoder" in formats:
        gguf = replace(gguf, audio_encoder=formats["audio_encoder"])
    return BundleRecipe(onnx, gguf)
