"""Recipes for llama.cpp: its own mixes of types. A new recipe is one entry of `GGUF_RECIPES`."""

from __future__ import annotations

from dataclasses import dataclass

from prunella.quantize.recipes import FLOAT, INT8_ROWS, WeightFormat

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
        error: what its rounding may do to the logits, in standard deviations: of float files the largest difference, of the
            others the root mean square, as `Recipe.drift`.
    """

    name: str
    summary: str
    ftype: int
    mmproj: str
    audio_encoder: WeightFormat
    nominal_bits: float
    types: tuple[str, ...] = ()
    error: float = 1.0

    @property
    def is_float(self) -> bool:
        """Whether other recipes can be made from it."""
        return self.name in ("F32", "F16", "BF16")


# By size where rows are a multiple of 256. Where they are not, sizes and order are others: `gguf_quantizer` reports them.
GGUF_RECIPES: dict[str, GgufRecipe] = {
    recipe.name: recipe
    for recipe in (
        GgufRecipe(
            "IQ4_XS", "4.25 bits, non-linear steps", 30, "Q8_0", INT8_ROWS, 4.46, ("IQ4_XS", "Q5_K", "Q6_K")
        ),
        GgufRecipe(
            "Q4_0",
            "4 bits in blocks of 32; the fastest on ARM",
            2,
            "Q8_0",
            INT8_ROWS,
            4.66,
            ("Q4_0", "Q4_1", "Q6_K"),
        ),
        GgufRecipe(
            "Q4_K_M",
            "4 bits, the important half of the tensors 6",
            15,
            "Q8_0",
            INT8_ROWS,
            4.89,
            ("Q4_K", "Q5_K", "Q6_K"),
        ),
        GgufRecipe(
            "Q5_K_M",
            "5 bits, the important half of the tensors 6",
            17,
            "Q8_0",
            INT8_ROWS,
            5.7,
            ("Q5_K", "Q6_K"),
            error=0.4,
        ),
        GgufRecipe("Q6_K", "6 bits", 18, "Q8_0", INT8_ROWS, 6.56, ("Q6_K",), error=0.2),
        GgufRecipe("Q8_0", "8 bits, as good as float", 7, "Q8_0", INT8_ROWS, 8.5, ("Q8_0",), error=0.2),
        GgufRecipe(
            "F16", "half floats: what the other GGUF recipes start from", 1, "F16", FLOAT, 16.0, error=0.1
        ),
        GgufRecipe("BF16", "bfloat16, for models trained in it", 32, "F16", FLOAT, 16.0, error=0.5),
        GgufRecipe("F32", "floats, for comparisons", 0, "F32", FLOAT, 32.0, error=1e-3),
    )
}


def default_gguf_recipe(hidden_size: int, feed_forward: int) -> str:
    """The recipe for a decoder of these widths: Q4_K_M, or Q4_0 where most of its tensors would fall back to 5 bits."""
    return "Q4_K_M" if hidden_size % SUPER_BLOCK == 0 and feed_forward % SUPER_BLOCK == 0 else "Q4_0"
