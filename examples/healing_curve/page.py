"""The healing curve as a picture and as a page of text; every number comes from the arms' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from prunella.device_runtime.files import whole_file, write_text
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
    trained = [point for point in points if point["arm"]["name"] == "full, same training"]
    if trained:
        wer = 100 * trained[0]["dev"]["main"]["wer"]
        axes.axhline(wer, linestyle="--", color="grey", label="nothing cut, same training")
        axes.axhline(1.1 * wer, linestyle=":", color="grey", label="10 % above it")
    axes.set_xlabel("decoder layers removed (of 30)")
    axes.set_ylabel("WER % (95 % interval)")
    axes.set_ylim(0, 110)
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
        f"`{conditions['model']}`, {conditions['source']}: {clips['main']} dev clips; other dev sources: {clips['others']} "
        f"clips; blocks chosen and bridges fitted on {conditions['calibration_clips']} training clips; every trained arm "
        f"has {conditions['minutes']:g} minutes.",
        "",
        "![layers removed against word errors](curve.png)",
        "",
        render_table(header, rows, markdown=True),
        "",
    ]
    text += _against_the_goal(points)
    write_text(folder / "curve.md", "\n".join(text) + "\n")


def _against_the_goal(points: list[dict[str, Any]]) -> list[str]:
    """Each healed arm against the uncut model with the same training, clip by clip."""
    lines = []
    for point in points:
        paired = point.get("against_full")
        if paired and point["arm"]["drop"]:
            relative = 100 * paired["difference"] / paired["rate_a"]
            low, high = (100 * paired[key] / paired["rate_a"] for key in ("low", "high"))
            lines.append(f"- {point['arm']['name']}: {relative:+.0f} % relative ({low:+.0f} to {high:+.0f})")
    return ["## Against the uncut model with the same training", "", *lines] if lines else []
