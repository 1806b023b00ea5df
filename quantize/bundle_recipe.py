"""What a bundle's decoders are stored as: recipes of one engine or of both, under one name such as `int4+Q4_0`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.suggestions import did_you_mean
from prunella.quantize.gguf_recipes import GGUF_RECIPES, GgufRecipe
from prunella.quantize.recipes import BLOCK_SIZES, RECIPES, Recipe


@dataclass(frozen=True)
class BundleRecipe:
    """What a bundle's decoders are stored as: one recipe for each engine that it has."""

    onnx: Recipe | None = None
    gguf: GgufRecipe | None = None

    @property
    def name(self) -> str:
        """For example `int4`, `Q4_K_M`, or `int4+Q4_0` for both engines."""
        return "+".join(part.name for part in (self.onnx, self.gguf) if part is not None)

    @property
    def is_float(self) -> bool:
        """Whether other recipes can be made from it."""
        return (self.onnx is None or self.onnx.name == "fp32") and (self.gguf is None or self.gguf.is_float)

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that it is for."""
        return tuple(engine for engine in ("onnx", "gguf") if getattr(self, engine) is not None)


def find_bundle_recipe(name: str) -> BundleRecipe:
    """The recipe of this name, or of two names joined by "+"; llama.cpp's names in any case.

    Raises:
        UsageError: there is none (the message names the nearest), or two of one engine.
    """
    found: dict[str, Recipe | GgufRecipe] = {}
    for part in name.split("+"):
        recipe = RECIPES.get(part) or GGUF_RECIPES.get(part.upper())
        if recipe is None:
            hint = did_you_mean(part, [*RECIPES, *GGUF_RECIPES])
            raise UsageError(
                f"no recipe '{part}': {hint}{' ' if hint else ''}there are {', '.join(RECIPES)} for ONNX Runtime and "
                f"{', '.join(GGUF_RECIPES)} for llama.cpp, and pairs such as int4+Q4_0"
            )
        engine = "onnx" if isinstance(recipe, Recipe) else "gguf"
        if engine in found:
            raise UsageError(f"'{name}' names two recipes for {engine}: give one for each engine")
        found[engine] = recipe
    return BundleRecipe(**found)  # type: ignore[arg-type]


def in_blocks(recipe: BundleRecipe, block_size: int | None, provenance: Mapping[str, Any]) -> BundleRecipe:
    """The recipe with the blocks that its 4-bit layers are stored in.

    Args:
        recipe: of a bundle.
        block_size: inputs that share a scale; None: what the model was last trained for (`heal --rounding`), where the recipe is
            `int4`, else the recipe's own.
        provenance: of the bundle.

    Raises:
        UsageError: a size that ONNX Runtime has no kernel for, or a recipe without 4-bit layers.
    """
    onnx = recipe.onnx
    if block_size is None:
        stages = provenance.get("healing")
        trained = [stage.get("rounding") for stage in stages or () if isinstance(stage, dict)]
        block_size = next((size for size in reversed(trained) if size), None)
        if onnx is None or onnx.name != "int4" or block_size not in BLOCK_SIZES:
            return recipe
    if block_size not in BLOCK_SIZES:
        known = ", ".join(map(str, BLOCK_SIZES))
        raise UsageError(f"no blocks of {block_size}: ONNX Runtime multiplies in blocks of {known}")
    if onnx is None or onnx.in_blocks(block_size) == onnx.in_blocks(2 * block_size):
        raise UsageError(f"{recipe.name} has no 4-bit layers on ONNX Runtime: leave out --block-size")
    return replace(recipe, onnx=onnx.in_blocks(block_size))
