"""What a recipe promises of a bundle's numbers beside the model's: the bounds of the gates that it passed when it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunella.device_runtime.bundle import BundleManifest
from prunella.export.onnx_gate import FLOAT_ERROR
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.quantize.onnx_drift import ENCODER_DRIFT
from prunella.quantize.part_precision import with_precision
from prunella.quantize.recipes import FLOAT

Measure = Literal["largest", "rms"]


@dataclass(frozen=True)
class Promise:
    """A bound, in standard deviations of PyTorch's values.

    Attributes:
        measure: "largest": every value keeps it, as float graphs do; "rms": the root mean square does, as rounding allows.
        bound: that is kept.
    """

    measure: Measure
    bound: float


@dataclass(frozen=True)
class Promises:
    """Of one engine of a bundle: for its audio half (embeddings, letters) and for its decoder's logits."""

    audio: Promise
    logits: Promise


def promises(manifest: BundleManifest, engine: str) -> Promises:
    """What a bundle's recipe promises.

    Args:
        manifest: of the bundle.
        engine: "onnx" or "gguf", one of its own.

    Raises:
        UsageError: the bundle names a recipe that does not exist.
    """
    recipe = with_precision(find_bundle_recipe(manifest.recipe), manifest.precision)
    maker = recipe.onnx or recipe.gguf  # one audio encoder serves both, and ONNX's recipe makes it
    assert maker is not None  # a recipe has one at least
    exact = maker.audio_encoder == FLOAT
    audio = Promise("largest", FLOAT_ERROR) if exact else Promise("rms", ENCODER_DRIFT)
    if engine == "onnx":
        assert recipe.onnx is not None
        exact = recipe.onnx.name == "fp32"
        return Promises(
            audio, Promise("largest", FLOAT_ERROR) if exact else Promise("rms", recipe.onnx.drift)
        )
    assert recipe.gguf is not None
    measure: Measure = "largest" if recipe.gguf.is_float else "rms"
    return Promises(audio, Promise(measure, recipe.gguf.error))
