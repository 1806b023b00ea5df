"""The healing curve as a picture: layers removed against word errors, and what bridging and training do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from arms import DEEPEST_SIZE, RIVAL, SIZES
from matplotlib import pyplot
from matplotlib.axes import Axes

from prunella.device_runtime.base.files import whole_file

# The arms of each line by the end of their names, and the uncut one that it begins at. Every other arm stands in curve.md.
_LINES = (
    ("cut", "full", "cut, nothing else", "#8a8499"),
    ("bridge", "full", "bridged, not trained", "#2f8f6b"),
    ("bridge, joint", RIVAL, "bridged and trained", "#6d3fc0"),
)
_LAYERS = 30
_TICKS = (10, 15, 20, 30, 50, 100)


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """A line for each thing that is done about a cut, with its 95 % interval, on the main dev source."""
    if not points:
        return
    figure, axes = pyplot.subplots(figsize=(8, 4.8), dpi=130)
    panel(axes, points)
    axes.set_title(title(points), loc="left", fontsize=12, fontweight="bold")
    figure.text(
        0.02, 0.01, "Main dev source; bands: 95 % intervals. Every arm: curve.md", fontsize=8, color="0.4"
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")
    pyplot.close(figure)


def title(points: list[dict[str, Any]]) -> str:
    """What the picture shows, in the figures of its points: the deepest cut that was made both alone and healed."""
    wer = {point["arm"]["name"]: 100 * point["dev"]["main"]["wer"] for point in points}
    for size in reversed(SIZES):
        cut, healed = wer.get(f"{size} cut"), wer.get(f"{size} bridge, joint")
        if cut is not None and healed is not None and RIVAL in wer:
            return (
                f"{size} of {_LAYERS} layers cut: {cut:.0f} % of the words wrong;\nbridged and trained: {healed:.1f} %, "
                f"nothing cut and as much training: {wer[RIVAL]:.1f} %"
            )
    return "Words wrong by decoder layers removed"


def panel(axes: Axes, points: list[dict[str, Any]]) -> None:
    """The lines, each labeled where it ends."""
    made = {point["arm"]["name"]: point for point in points}
    for way, uncut, label, color in _LINES:
        names = [uncut, *(f"{size} {way}" for size in (*SIZES, DEEPEST_SIZE))]
        line = [made[name] for name in names if name in made]
        if not any(point["arm"]["drop"] for point in line):
            continue
        drops = [point["arm"]["drop"] for point in line]
        wer, low, high = (
            [100 * point["dev"]["main"][key] for point in line] for key in ("wer", "wer_low", "wer_high")
        )
        axes.plot(drops, wer, marker="o", linewidth=2, color=color, label=label)
        axes.fill_between(drops, low, high, color=color, alpha=0.15, linewidth=0)
        axes.annotate(
            label,
            (drops[-1], wer[-1]),
            (10, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontweight="bold",
        )
    axes.set_yscale("log")
    axes.set_yticks(_TICKS, [str(tick) for tick in _TICKS])
    axes.minorticks_off()
    axes.set_xticks([0, *SIZES, DEEPEST_SIZE])
    axes.set_xlim(-0.4, DEEPEST_SIZE + 4)
    axes.set_xlabel(f"decoder layers removed (of {_LAYERS})")
    axes.set_ylabel("words wrong, %")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
