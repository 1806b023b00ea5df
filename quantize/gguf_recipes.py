"""Recipes for llama.cpp, and the names under which a bundle carries recipes of one engine or of both."""

from __future__ import annotations

from dataclasses import dataclass

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.suggestions import did_you_mean
from prunella.quantize.recipes import RECIPES, Recipe, WeightFormat

SUPER_BLOCK = 256  # weights that K-quants and IQ4_XS store together: a row must be a multiple


@dataclass(frozen=True)
class GgufRecipe:
    """One of llama.cpp's own mixes of types.

    Attributes:
        ftype: llama.cpp's `llama_ftype`.
        types: that it stores matrices as, where their rows are a multiple of 256; others fall back, tensor by tensor.
        mmproj: kind of the audio half's file, for llama.cpp's own encoder.
        audio_encoder: the same for ours, on ONNX Runtime.
        nominal_bits: per weight, where nothing falls back.
    """

    name: str
    summary: str
    ftype: int
    mmproj: str
    audio_encoder: WeightFormat
    nominal_bits: float
    types: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether other recipes can be made from it."""
        return self.name in ("F32", "F16", "BF16")


_FLOAT = WeightFormat("float")
_INT8_ROWS = WeightFormat("channelwise", bits=8)

# By size where rows are a multiple of 256. Where they are not, sizes and order are others: `gguf_quantizer` reports them.
GGUF_RECIPES: dict[str, GgufRecipe] = {
    recipe.name: recipe
    for recipe in (
        GgufRecipe(
            "IQ4_XS", "4.25 bits, non-linear steps", 30, "Q8_0", _INT8_ROWS, 4.46, ("IQ4_XS", "Q5_K", "Q6_K")
        ),
        GgufRecipe(
            "Q4_0",
            "4 bits in blocks of 32; the fastest on ARM",
            2,
            "Q8_0",
            _INT8_ROWS,
            4.66,
            ("Q4_0", "Q4_1", "Q6_K"),
        ),
        GgufRecipe(
            "Q4_K_M",
            "4 bits, the important half of the tensors 6",
            15,
            "Q8_0",
            _INT8_ROWS,
            4.89,
            ("Q4_K", "Q5_K", "Q6_K"),
        ),
        GgufRecipe(
            "Q5_K_M",
            "5 bits, the important half of the tensors 6",
            17,
            "Q8_0",
            _INT8_ROWS,
            5.7,
            ("Q5_K", "Q6_K"),
        ),
        GgufRecipe("Q6_K", "6 bits", 18, "Q8_0", _INT8_ROWS, 6.56, ("Q6_K",)),
        GgufRecipe("Q8_0", "8 bits, as good as float", 7, "Q8_0", _INT8_ROWS, 8.5, ("Q8_0",)),
        GgufRecipe("F16", "half floats: what the other GGUF recipes start from", 1, "F16", _FLOAT, 16.0),
        GgufRecipe("BF16", "bfloat16, for models trained in it", 32, "F16", _FLOAT, 16.0),
        GgufRecipe("F32", "floats, for comparisons", 0, "F32", _FLOAT, 32.0),
    )
}


def default_gguf_recipe(hidden_size: int, feed_forward: int) -> str:
    """The recipe for a decoder of these widths: Q4_K_M, or Q4_0 where most of its tensors would fall back to 5 bits."""
    return "Q4_K_M" if hidden_size % SUPER_BLOCK == 0 and feed_forward % SUPER_BLOCK == 0 else "Q4_0"


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
