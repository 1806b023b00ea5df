"""The recipes whose bundles a build makes and compares: the float one, the target's own, and well-known ones beside them."""

from __future__ import annotations

from dataclasses import dataclass

from prunella.export.export import default_recipe, float_recipe
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.speech_llm.model_facts import read_facts
from prunella.targets.profile import TargetProfile

_COMPARED = ("int8", "int4", "Q8_0", "Q4_0", "int8+Q8_0")
_ENGINE_NAMES: dict[tuple[str, ...], str] = {("onnx",): "ONNX", ("gguf",): "GGUF"}


@dataclass(frozen=True)
class BuildRecipes:
    """All are for the engines of the recipe that was asked for."""

    # The one that the others are made from, by its name: "fp32", "F16" or both joined.
    float: str
    # What the build is for.
    asked: str
    # In the table's order, float first and the one asked for last.
    all: tuple[str, ...]

    @property
    def engine_name(self) -> str:
        """How the table names the engines."""
        return _ENGINE_NAMES.get(find_bundle_recipe(self.asked).engines, "both")


def choose_recipes(model: str, target: TargetProfile, recipe: str | None = None) -> BuildRecipes:
    """Those for a model, named as for `load`; of it only the configuration is read, and that only where it matters.

    Args:
        model: see above.
        target: that the build is for.
        recipe: what is asked for; the target's own, if not given.

    Raises:
        CheckpointError: the model cannot be read.
    """
    asked = find_bundle_recipe(recipe or target.recipe)
    if recipe is None and "Q4_K_M" in target.recipe:  # what that becomes depends on the model
        asked = find_bundle_recipe(default_recipe(read_facts(model).decoder, target))
    whole = float_recipe(asked.engines)
    compared = [name for name in _COMPARED if find_bundle_recipe(name).engines == asked.engines]
    offered = [name for name in compared if name in target.recipes]
    return BuildRecipes(whole, asked.name, tuple(dict.fromkeys([whole, *offered, asked.name])))
