"""The healing curve as a page of text; every number comes from the arms' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arms import RIVAL, all_arms, questions

from prunella.device_runtime.base.files import write_text
from prunella.evaluation.bootstrap import PairedDifference, paired_difference
from prunella.evaluation.table import render_table

_PARTS = {"main": "main source", "others": "other sources", "greedy": "main source, greedy"}


def write_page(points: list[dict[str, Any]], conditions: dict[str, Any], folder: Path) -> None:
    """`curve.md`: the table, and what it says about the goal."""
    rows = []
    for point in points:
        main, others, greedy = (point["dev"][part] for part in ("main", "others", "greedy"))
        rows.append(
            (
                point["arm"]["name"],
                " ".join(point["blocks"]) or "-",
                str(point["layers"]),
                f"{100 * main['wer']:.1f} ({100 * main['wer_low']:.1f}-{100 * main['wer_high']:.1f})",
                f"{100 * others['wer']:.1f}",
                f"{100 * greedy['wer']:.1f}",
                f"{main['cross_entropy']:.3f}",
                _minutes(point),
                f"{point['steps']}{'*' if 'budget_steps' in point else ''}" if point["steps"] else "-",
            )
        )
    header = (
        "arm",
        "cut",
        "layers",
        "WER % (95 %)",
        "WER % others",
        "greedy",
        "loss",
        "minutes trained",
        "steps",
    )
    clips = conditions["clips"]
    text = [
        "# The healing curve",
        "",
        f"`{conditions['model']}` (weights {conditions['model_weights']}), {conditions['source']}: {clips['main']} dev clips; other dev sources: {clips['others']} "
        f"clips; blocks chosen and bridges fitted on {conditions['calibration_clips']} training clips; {RIVAL!r} is trained for "
        f"{conditions['minutes']:g} minutes, every other trained arm as long or, where its steps have a star, for as many FLOPs.",
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


def _minutes(point: dict[str, Any]) -> str:
    """What an arm's training took. Where two arms share a machine, each has one core, which the cell says."""
    if not point["steps"]:
        return "-"
    return f"{point['training_minutes']:.0f}" + (" on 1 core" if point.get("threads") == 1 else "")


def paired(points: list[dict[str, Any]], name: str, than: str, part: str = "main") -> PairedDifference | None:
    """Word errors of an arm minus those of another on the main dev clips; None where one of them is not made yet.

    `part` "others": on the other sources; "greedy": without beams and letters, which make up for some of what a decoder does
    not know.
    """
    by_name = {point["arm"]["name"]: point["dev"][part]["clips"] for point in points}
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

    def relative(name: str, part: str) -> str:
        d = paired(points, name, RIVAL, part)
        assert d is not None
        return _with_interval(d, 100 / d.rate_a, "+.0f")

    made = {point["arm"]["name"] for point in points}
    healed = [point["arm"]["name"] for point in points if point["arm"]["train"] and point["arm"]["drop"]]
    rows = [(name, *(relative(name, part) for part in _PARTS)) for name in healed if RIVAL in made]
    if not rows:
        return []
    return [
        "## Against the uncut model with the same training",
        "",
        f"Word errors in % above those of {RIVAL!r}, relative, by paired bootstrap over the same clips (95 % interval); bold: not by chance.",
        "",
        render_table(("arm", *_PARTS.values()), rows, markdown=True),
        "",
    ]


def _answers(points: list[dict[str, Any]]) -> list[str]:
    """What pairs of arms that differ in one thing say."""
    made = {point["arm"]["name"]: point for point in points}
    rows = []
    for question in questions():
        one, other = made.get(question.better), made.get(question.than)
        if one is None or other is None:
            continue
        pairs = [paired(points, question.better, question.than, part) for part in _PARTS]
        answers = [_with_interval(d, 100, "+.1f") for d in pairs if d is not None]
        if block := _same_block(one, other):
            answers = [f"both chose {block}", *("" for _ in answers[1:])]
        rows.append((question.asked, f"`{question.better}` minus `{question.than}`", *answers))
    if not rows:
        return []
    return [
        "## One thing at a time",
        "",
        "Points of WER that the first of two arms has more than the second, paired in the same way; bold: not by chance.",
        "",
        render_table(("question", "arms", *_PARTS.values()), rows, markdown=True),
        "",
    ]


def _with_interval(d: PairedDifference, scale: float, digits: str) -> str:
    middle, low, high = (format(scale * value, digits) for value in (d.difference, d.low, d.high))
    mark = "**" if d.low > 0 or d.high < 0 else ""
    return f"{mark}{middle}{mark} ({low} to {high})"


def _same_block(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """What two strategies both chose to cut; None where they differ, or are one."""
    if one["arm"]["strategy"] == other["arm"]["strategy"]:
        return None
    return " ".join(one["blocks"]) if one["blocks"] == other["blocks"] else None
