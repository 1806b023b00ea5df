"""How far a bundle's quantised graphs are from the float ones that they were made of, measured before they are sealed.

What is stored in fewer bits says something else, so each recipe has a bound of its own (`Recipe.drift`): what is beyond
it is no rounding but a fault, or a model that does not bear the recipe. What was measured stands in the provenance:
`prunella export reference --target x86-cpu --recipe int4 -o out/int4` and `prunella info out/int4` show it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import ExportError
from prunella.device_runtime.bundle import Bundle, BundleManifest
from prunella.quantize.bundle_recipe import BundleRecipe
from prunella.quantize.onnx_probe import probe_graphs, too_large

_LOG = logging.getLogger(__name__)
# Of embeddings and letters, as `Recipe.drift` of logits. Audio encoders have 8 bits or floats in every recipe.
ENCODER_DRIFT = 0.2


@dataclass(frozen=True)
class Drift:
    """What was compared, for the bundle's provenance: root mean squares in standard deviations of the float values.

    Attributes:
        embeddings: of the audio embeddings.
        logits: the same, each row's mean taken away from it; None where there is no ONNX decoder.
        equal_tokens: of the 32 that the quantised decoder says, those that the float one says in its place.
        not_compared: why nothing was; None where it was.
    """

    embeddings: float | None = None
    logits: float | None = None
    equal_tokens: int | None = None
    not_compared: str | None = None


def measure_drift(source: Bundle, folder: Path, manifest: BundleManifest, recipe: BundleRecipe) -> Drift:
    """Compare the graphs in `folder`/onnx with those of the float bundle that they were made of.

    Args:
        source: the float bundle.
        folder: of the quantised one, not sealed yet.
        manifest: of the quantised one.
        recipe: what it was made as.

    Raises:
        ExportError: they differ by more than the recipe explains, or do not run.
    """
    reason = too_large(source.path)
    if reason is not None:
        _LOG.warning("%s was NOT compared with its float bundle: %s; %s", recipe.name, reason, REMEDY_UNSEEN)
        return Drift(not_compared=reason)
    found = probe_graphs(folder, manifest)
    expected = probe_graphs(source.path, source.manifest, found.tokens)
    embeddings = _distance(expected.embeddings, found.embeddings)
    check_drift(embeddings, ENCODER_DRIFT, "audio embeddings", recipe.name)
    if expected.ctc_log_probs is not None and found.ctc_log_probs is not None:
        check_drift(
            _distance(expected.ctc_log_probs, found.ctc_log_probs), ENCODER_DRIFT, "letters", recipe.name
        )
    if recipe.onnx is None or expected.logits is None or found.logits is None:
        return Drift(embeddings)
    # What is added to all logits of a position changes nothing.
    logits = _distance(_centered(expected.logits), _centered(found.logits))
    check_drift(logits, recipe.onnx.drift, "logits", recipe.name)
    said = expected.logits[-len(found.tokens) :].argmax(1)
    return Drift(embeddings, logits, int((said == np.array(found.tokens)).sum()))


REMEDY_UNSEEN = (
    "measure it with `prunella eval` before you trust it, or make it on a machine with more memory"
)


def check_drift(distance: float, bound: float, what: str, recipe: str) -> None:
    """Refuse more than a recipe's rounding explains, in standard deviations.

    Raises:
        ExportError: beyond the bound, or not a number; names `what` and the recipe.
    """
    if not distance <= bound:  # also when it is NaN
        raise ExportError(
            f"as {recipe}, the model's {what} are {distance:.2g} standard deviations from the float bundle's "
            f"({bound:g} is allowed): take a recipe of more bits (int4-mixed, int8), or heal the model with --rounding"
        )


def _centered(logits: Float32) -> Float32:
    return logits - logits.mean(axis=1, keepdims=True)


def _distance(expected: Float32, found: Float32) -> float:
    if expected.shape != found.shape:
        return float("inf")
    difference = np.sqrt(np.square(found - expected, dtype=np.float64).mean())
    return float(difference) / max(float(expected.std()), 1e-12)
