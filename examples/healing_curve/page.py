"""The healing curve as a picture and as a page of text; every number comes from the arms' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from arms import RIVAL, all_arms, questions
from matplotlib import pyplot

from prunella.device_runtime.files import whole_file, write_text
from prunella.evaluation.bootstrap import PairedDifference, paired_difference
from prunella.evaluation.table import render_table

_KINDS = ("cut", "bridge", "bridge, decoder only", "joint", "bridge, joint", "bridge, joint, distilled")


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Layers removed against WER, a line for each thing that is done about it."""
    if not points:
        return
    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=130)
    full = [point for point in points if point["arm"]["name"] == "full"]
    for kind in _KINDS:
        line = [
            point
            for point in points
            if point["arm"]["name"].partition(" ")[2] == kind and point["arm"]["drop"]
        ]
        line = sorted(full + line, key=lambda point: point["arm"]["drop"])
        if len(line) < 2:
            continue
        wer = [100 * point["dev"]["main"]["wer"] for point in line]
        low = [100 * (p["dev"]["main"]["wer"] - p["dev"]["main"]["wer_low"]) for p in line]
        high = [100 * (p["dev"]["main"]["wer_high"] - p["dev"]["main"]["wer"]) for p in line]
        drops = [point["arm"]["drop"] for point in line]
        axes.errorbar(drops, wer, yerr=[low, high], marker="o", capsize=3, label=kind)
    trained = [point for point in points if point["arm"]["name"] == RIVAL]
    if trained:
        wer = 100 * trained[0]["dev"]["main"]["wer"]
        axes.axhline(wer, linestyle="--", color="grey", label="nothing cut, same training")
        axes.axhline(1.1 * wer, linestyle=":", color="grey", label="10 % above it")
    axes.set_xlabel("decoder layers removed (of 30)")
    axes.set_ylabel("WER % (95 % interval)")
    axes.set_ylim(0, 110)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", bbox_inches="tight")
    pyplot.close(figure)


def write_page(points: list[dict[str, Any]], conditions: dict[str, Any], folder: Path) -> None:
    """`curve.md`: the table, and what it says about the goal."""
    rows = []
    for point in points:
        main, others = point["dev"]["main"], point["dev"]["others"]
        rows.append(
            (
                point["arm"]["name"],
                " ".join(point["blocks"]) or "-",
                str(point["layers"]),
                f"{100 * main['wer']:.1f} ({100 * main['wer_low']:.1f}-{100 * main['wer_high']:.1f})",
                f"{100 * others['wer']:.1f}",
                f"{main['cross_entropy']:.3f}",
                f"{point['training_minutes']:.0f}" if point["steps"] else "-",
                str(point["steps"] or "-"),
            )
        )
    header = ("arm", "cut", "layers", "WER % (95 %)", "WER % others", "loss", "minutes trained", "steps")
    clips = conditions["clips"]
    text = [
        "# The healing curve",
        "",
        f"`{conditions['model']}` (weights {conditions['model_weights']}), {conditions['source']}: {clips['main']} dev clips; other dev sources: {clips['others']} "
        f"clips; blocks chosen and bridges fitted on {conditions['calibration_clips']} training clips; every trained arm "
        f"has {conditions['minutes']:g} minutes.",
        "",
        "![layers removed against word errors](curve.png)",
        "",
        render_table(header, rows, markdown=True),
        "",
    ]
    text += _against_full(points) + _answers(points)
    made = {point["arm"]["name"] for point in points}
    missing = [arm.name for arm in all_arms() if arm.name not in made]
    if missing:
        text += ["## Not made yet", "", "; ".join(missing), ""]
    write_text(folder / "curve.md", "\n".join(text))


def paired(points: list[dict[str, Any]], name: str, than: str) -> PairedDifference | None:
    """Word errors of an arm minus those of another on the main dev clips; None where one of them is not made yet."""
    by_name = {point["arm"]["name"]: point["dev"]["main"]["clips"] for point in points}
    if name not in by_name or than not in by_name:
        return None
    mine, theirs = by_name[name], by_name[than]
    shared = [clip for clip in theirs if clip in mine]
    return paired_difference(
        [theirs[clip][0] for clip in shared],
        [mine[clip][0] for clip in shared],
        [theirs[clip][1] for clip in shared],
    )


def _against_full(points: list[dict[str, Any]]) -> list[str]:
    """Each healed arm against the uncut model with the same training."""
    lines = []
    for point in points:
        difference = paired(points, point["arm"]["name"], RIVAL)
        if difference and point["arm"]["train"] and point["arm"]["drop"]:
            relative, low, high = (
                100 * value / difference.rate_a
                for value in (difference.difference, difference.low, difference.high)
            )
            lines.append(f"- {point['arm']['name']}: {relative:+.0f} % relative ({low:+.0f} to {high:+.0f})")
    title = "## Against the uncut model with the same training"
    return [title, "", "Paired bootstrap over the same clips.", "", *lines, ""] if lines else []


def _answers(points: list[dict[str, Any]]) -> list[str]:
    """What pairs of arms that differ in one thing say."""
    lines = []
    for question in questions():
        d = paired(points, question.better, question.than)
        if d is not None:
            clear = "" if d.low > 0 or d.high < 0 else "; chance explains it"
            lines.append(
                f"- {question.asked} `{question.better}` minus `{question.than}`: {100 * d.difference:+.1f} points of WER "
                f"({100 * d.low:+.1f} to {100 * d.high:+.1f}{clear})"
            )
    return ["## One thing at a time", "", *lines, ""] if lines else []
