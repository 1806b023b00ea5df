"""What lies where in the folder of a build: a step that makes an artefact and the steps that need it agree here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunella.pruning.analyze import MAP_NAME, PICTURE_NAME


@dataclass(frozen=True)
class Artifacts:
    """Paths in the folder `out`. Builds that were begun by an earlier prunella go on as long as these names stay."""

    out: Path

    @property
    def plan(self) -> Path:
        """The plan that the folder was begun with, and what decided it."""
        return self.out / "plan.json"

    @property
    def redundancy(self) -> Path:
        """Folder of the redundancy maps and their picture."""
        return self.out / "redundancy"

    @property
    def maps(self) -> Path:
        """The redundancy maps."""
        return self.redundancy / MAP_NAME

    @property
    def picture(self) -> Path:
        """The redundancy maps, drawn."""
        return self.redundancy / PICTURE_NAME

    @property
    def pruned(self) -> Path:
        """Checkpoint of the model after the cut, bridged."""
        return self.out / "pruned"

    @property
    def cut(self) -> Path:
        """Checkpoint of the same cut without its bridge."""
        return self.out / "cut"

    @property
    def healed(self) -> Path:
        """Checkpoint of the pruned model, trained here."""
        return self.out / "healed"

    @property
    def healing(self) -> Path:
        """The training's own checkpoints."""
        return self.out / "healed.healing"

    def bundle(self, kind: str, recipe: str) -> Path:
        """Bundle of the "full" or the "pruned" model with a recipe, "int4" for example."""
        return self.out / f"{kind}-{recipe}"

    def row(self, entry_id: str) -> Path:
        """A line of the final table, by the id of what was measured."""
        return self.out / "rows" / f"{entry_id}.json"

    @property
    def report(self) -> Path:
        """The plan and all rows, for programs."""
        return self.out / "report.json"

    @property
    def table(self) -> Path:
        """The final table, for people."""
        return self.out / "report.md"
