"""What could be built of a model for a target: every number of layers with every recipe, predicted, and one that is proposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunella.device_runtime.base.errors import TargetError, UsageError
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.quantize.storage import storage_of
from prunella.targets.expected_wer import ROUNDED, expected_increase
from prunella.targets.fit import COMMAND_SECONDS, Prediction, predict
from prunella.targets.profile import TargetProfile
from prunella.targets.shapes import ModelShapes

MAX_WER_INCREASE = 15.0  # percent
_NO_DIFFERENCE = 1.0  # percent of word errors that no evaluation tells apart: the faster one is taken
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the layers: what published cuts keep


@dataclass(frozen=True)
class Alternative:
    """One way to build a model.

    Attributes:
        prediction: memory and time on the target.
        increase: expected of the word error rate, in percent.
        wer: expected, in percent; None where the whole model's is not known.
        fits: whether its memory stays within the target's budget.
        in_time: whether a command's text is there when the target wants it.
    """

    prediction: Prediction
    increase: float
    wer: float | None
    fits: bool
    in_time: bool

    @property
    def good(self) -> bool:
        """Whether it keeps both budgets."""
        return self.fits and self.in_time


@dataclass(frozen=True)
class FitReport:
    """All alternatives for a target, and the one that is proposed.

    Attributes:
        shapes: of the whole model.
        target: that it is for.
        alternatives: by layers, then by recipe.
        proposed: of those with the least expected harm that keep both budgets the fastest; None where none does.
        nearest: what comes nearest where none does.
    """

    shapes: ModelShapes
    target: TargetProfile
    alternatives: tuple[Alternative, ...]
    proposed: Alternative | None
    nearest: Alternative | None


def alternatives(
    shapes: ModelShapes,
    target: TargetProfile,
    *,
    layers: Sequence[int] = (),
    recipes: Sequence[str] = (),
    vocabulary: int | None = None,
    seconds: float = COMMAND_SECONDS,
    beams: int = 1,
) -> tuple[Alternative, ...]:
    """Every number of layers with every recipe of the target's first engine.

    Raises:
        TargetError: nothing is known of the target's speed.
        UsageError: so many layers, such a recipe or so large a vocabulary does not exist, or the target does not allow it.
    """
    if not target.compute.known:
        raise TargetError(
            f"nothing is known of how fast {target.name} is: measure one with `prunella fit --calibrate -o here.toml` and "
            "name that file as the target"
        )
    chosen = recipes or tuple(
        name
        for name in target.recipes
        if name in ROUNDED and find_bundle_recipe(name).engines == target.engines[:1]
    )
    for name in chosen:
        find_bundle_recipe(name)
        if name not in target.recipes:
            raise UsageError(f"{target.name} allows {', '.join(target.recipes)}, not {name}")
    whole = shapes.decoder.layers
    counts = layers or tuple(dict.fromkeys(round(share * whole) for share in _SHARES))
    found = []
    for count in counts:
        smaller = shapes.kept(count, vocabulary)
        for name in chosen:
            storage = storage_of(name, target.precision.overrides())
            one = predict(smaller, storage, target.compute, seconds=seconds, beams=beams)
            increase = expected_increase(shapes, count, name)
            found.append(
                Alternative(
                    one,
                    increase,
                    None if shapes.wer is None else shapes.wer * (1 + increase / 100),
                    not target.memory.budget_mb or one.memory_mb <= target.memory.budget_mb,
                    one.total <= target.latency.command_seconds * seconds / COMMAND_SECONDS,
                )
            )
    return tuple(found)


def fit_model(
    shapes: ModelShapes,
    target: TargetProfile,
    *,
    max_wer_increase: float = MAX_WER_INCREASE,
    layers: Sequence[int] = (),
    recipes: Sequence[str] = (),
    vocabulary: int | None = None,
    seconds: float = COMMAND_SECONDS,
    beams: int = 1,
) -> FitReport:
    """Predict all alternatives and propose one.

    Raises:
        TargetError: nothing is known of the target's speed.
        UsageError: see `alternatives`; or the bound on the increase is below 0.
    """
    if max_wer_increase < 0:
        raise UsageError(f"--max-wer-increase {max_wer_increase:g}: give 0 or more, in percent")
    found = alternatives(
        shapes, target, layers=layers, recipes=recipes, vocabulary=vocabulary, seconds=seconds, beams=beams
    )
    bearable = [one for one in found if one.increase <= max_wer_increase + 1e-9]
    good = [one for one in bearable if one.good]
    least = min((one.increase for one in good), default=0.0)
    proposed = min(
        (one for one in good if one.increase <= least + _NO_DIFFERENCE),
        key=lambda one: one.prediction.total,
        default=None,
    )
    nearest = None
    if proposed is None:
        nearest = min(
            bearable or found,
            key=lambda one: (not one.fits, one.prediction.total if one.fits else one.prediction.memory_mb),
        )
    return FitReport(shapes, target, found, proposed, nearest)
