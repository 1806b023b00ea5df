"""Recipes as the cost model of `targets/fit.py` knows them: bits and kernel of every part."""

from __future__ import annotations

from collections.abc import Mapping

from prunella.device_runtime.base.errors import UsageError
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.quantize.gguf_recipes import GgufRecipe
from prunella.quantize.part_precision import with_precision
from prunella.quantize.recipes import RECIPES, Recipe, WeightFormat
from prunella.targets.storage import FLOAT32, Format, Storage

_HALF = 16.0
_SMALL = 7.0  # bits, below which llama.cpp's types multiply as 4-bit ones do


def storage_of(name: str, precision: Mapping[str, str] | None = None) -> Storage:
    """Of a recipe for one engine.

    Args:
        name: such as "int4" or "Q4_K_M".
        precision: parts that a target stores otherwise, see `part_precision`.

    Raises:
        UsageError: no such recipe, or one for two engines.
    """
    recipe = with_precision(find_bundle_recipe(name), precision or {})
    if recipe.onnx is not None and recipe.gguf is not None:
        raise UsageError(f"'{name}' is for two engines: give a recipe of one")
    return _onnx(recipe.onnx) if recipe.onnx is not None else _gguf(recipe.gguf)


def kernels() -> tuple[str, ...]:
    """Of all recipes for ONNX Runtime: what a machine is measured for."""
    parts = (storage_of(name) for name in RECIPES)
    found = [
        one.kernel
        for storage in parts
        for one in (
            storage.attention,
            storage.gate_up,
            storage.down,
            storage.head,
            storage.encoder,
            storage.projector,
        )
    ]
    return tuple(dict.fromkeys(found))


def format_of(weights: WeightFormat) -> Format:
    """Bits and kernel of a format."""
    if weights.method == "float":
        return FLOAT32
    if weights.method == "channelwise":
        return Format("int8_rows", 8)
    return Format(f"int{weights.bits}_{weights.block_size}", weights.bits, weights.block_size)


def _onnx(recipe: Recipe) -> Storage:
    return Storage(
        name=recipe.name,
        engine="onnx",
        attention=format_of(recipe.attention),
        gate_up=format_of(recipe.decoder),
        down=format_of(recipe.down_projection),
        head=format_of(recipe.head),
        encoder=format_of(recipe.audio_encoder),
        embeddings=format_of(recipe.embed_tokens),
        shared=recipe.tied,
        projector=format_of(recipe.projector),
    )


def _gguf(recipe: GgufRecipe | None) -> Storage:
    assert recipe is not None
    bits = recipe.nominal_bits
    kernel = (
        "float32" if bits > _HALF else "float16" if bits == _HALF else "int8" if bits > _SMALL else "int4"
    )
    of_all = Format(kernel, bits)
    return Storage(
        name=recipe.name,
        engine="gguf",
        attention=of_all,
        gate_up=of_all,
        down=of_all,
        head=of_all,
        encoder=format_of(recipe.audio_encoder),
        embeddings=of_all,
        shared=True,
    )
