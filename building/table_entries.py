"""What the final table compares: every form of the model, and a native baseline."""

from __future__ import annotations

from dataclasses import dataclass

from prunella.building.artifacts import Artifacts
from prunella.building.build_plan import BuildPlan
from prunella.building.build_recipes import BuildRecipes
from prunella.evaluation.systems import BASELINE
from prunella.speech_llm.load import resolve


@dataclass(frozen=True)
class TableEntry:
    """One line of the table: `id` names its file, `name` is what people read, `system` what is measured."""

    id: str
    name: str
    system: str


def table_entries(plan: BuildPlan, at: Artifacts, recipes: BuildRecipes) -> tuple[TableEntry, ...]:
    """In the table's order."""
    entries = [
        TableEntry("full-pytorch", "full, PyTorch", str(resolve(plan.model))),
        TableEntry("cut-pytorch", "cut, PyTorch", str(at.cut)),
        TableEntry("pruned-pytorch", "pruned, PyTorch", str(at.pruned)),
    ]
    healed = resolve(plan.healed) if plan.healed else at.healed if plan.heals else None
    if healed is not None:
        entries.append(TableEntry("healed-pytorch", "healed, PyTorch", str(healed)))
    engine = recipes.engine_name
    entries += [
        TableEntry(
            f"{kind}-{engine}-{recipe}".lower(), f"{kind}, {engine} {recipe}", str(at.bundle(kind, recipe))
        )
        for kind in ("full", "pruned")
        for recipe in recipes.all
    ]
    if plan.baseline:
        name = "Whisper tiny.en, own decoder, int8"
        entries.append(TableEntry("whisper-tiny.en-own-decoder-int8", name, BASELINE))
    return tuple(entries)
