"""Alternatives as a picture: predicted seconds against expected word errors, the target's wish as a line. SVG, by hand: a device draws it too."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from prunella.building.fit_choice import Alternative, FitReport
from prunella.device_runtime.base.files import write_text

_INK, _QUIET, _PAPER, _RULE, _GOAL = "#1f1b2e", "#5c566e", "#ffffff", "#dcd8e6", "#c22f4b"
_COLORS = ("#6d3fc0", "#2f8f6b", "#c77d0a", "#2b6cb0", "#a83279", "#5b7f1d", "#8a5a3b", "#3f3f3f")
_WIDTH, _HEIGHT = 760, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 600, 66, 396


def draw_fit(report: FitReport, path: str | Path) -> None:
    """Write the picture as SVG."""
    write_text(Path(path), fit_svg(report))


def fit_svg(report: FitReport) -> str:
    """A dot for every alternative: filled where it fits in memory, ringed where it is the one proposed."""
    known = report.shapes.wer is not None
    goal = report.target.latency.command_seconds
    times = [one.prediction.total for one in report.alternatives]
    heights = [_height(one, known) for one in report.alternatives]
    low, high = math.log10(min(*times, goal) / 1.3), math.log10(max(*times, goal) * 1.3)
    bottom, top = min(heights), max(heights)
    room = max(top - bottom, 0.1) * 0.12
    bottom, top = max(bottom - room, 0.0) if known else bottom - room, top + room

    def at(seconds: float, height: float) -> tuple[float, float]:
        across = (math.log10(seconds) - low) / (high - low)
        return _LEFT + (_RIGHT - _LEFT) * across, _BOTTOM - (_BOTTOM - _TOP) * (height - bottom) / (
            top - bottom
        )

    what = "Word errors, %" if known else "Expected rise of word errors, %"
    parts = [
        _text(
            24, 30, f"{report.shapes.title} on {report.target.name}: predicted, not measured", 17, _INK, "600"
        ),
        _text(
            24,
            50,
            f"{what}, against seconds from the end of a {report.alternatives[0].prediction.seconds:g} s command to its text",
            13,
        ),
    ]
    for step in range(5):
        height = bottom + (top - bottom) * step / 4
        _, y = at(10**low, height)
        parts.append(f"<line x1='{_LEFT}' x2='{_RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='{_RULE}'/>")
        parts.append(_text(_LEFT - 8, y + 4, f"{height:.3g}", 12, more="text-anchor='end'"))
    for seconds in _ticks(10**low, 10**high):
        x, _ = at(seconds, bottom)
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{_BOTTOM}' y2='{_BOTTOM + 5}' stroke='{_QUIET}'/>")
        parts.append(_text(x, _BOTTOM + 20, f"{seconds:g} s", 12, more="text-anchor='middle'"))
    x, _ = at(goal, bottom)
    parts.append(
        f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP}' y2='{_BOTTOM}' stroke='{_GOAL}' stroke-width='2' stroke-dasharray='6 4'/>"
    )
    parts.append(_text(x + 5, _TOP + 12, f"wanted: {goal:g} s", 12, _GOAL))
    names = list(dict.fromkeys(one.prediction.recipe for one in report.alternatives))
    for number, name in enumerate(names):
        color = _COLORS[number % len(_COLORS)]
        of_it = [one for one in report.alternatives if one.prediction.recipe == name]
        line = " ".join(
            f"{x:.1f},{y:.1f}" for x, y in (at(one.prediction.total, _height(one, known)) for one in of_it)
        )
        parts.append(f"<polyline points='{line}' fill='none' stroke='{color}' stroke-opacity='0.4'/>")
        parts += [_dot(*at(one.prediction.total, _height(one, known)), one, color, report) for one in of_it]
        y = _TOP + 22 + 22 * number
        parts.append(f"<circle cx='{_RIGHT + 24}' cy='{y - 4}' r='6' fill='{color}'/>")
        parts.append(_text(_RIGHT + 38, y, name, 13, _INK))
    legend = ("hollow: too large", "for the memory", "ring: proposed", "numbers: layers")
    parts += [
        _text(_RIGHT + 18, _TOP + 40 + 22 * len(names) + 18 * line, said, 12)
        for line, said in enumerate(legend)
    ]
    parts.append(
        _text(
            24,
            _HEIGHT - 22,
            "Errors are those stated for the whole model, with the rise that other models' cuts and roundings showed (docs/fit.md).",
            12,
        )
    )
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' height='{_HEIGHT}' "
        "role='img' font-family='system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif'>"
    )
    title = f"<title>{escape(_said(report))}</title>"
    paper = f"<rect width='{_WIDTH}' height='{_HEIGHT}' rx='10' fill='{_PAPER}' stroke='{_RULE}'/>"
    return "\n".join([head, title, paper, *parts, "</svg>", ""])


def _height(one: Alternative, known: bool) -> float:
    return one.wer if known and one.wer is not None else one.increase


def _dot(x: float, y: float, one: Alternative, color: str, report: FitReport) -> str:
    fill = color if one.fits else _PAPER
    ring = (
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='11' fill='none' stroke='{_INK}' stroke-width='2'/>"
        if one is report.proposed
        else ""
    )
    label = _text(x, y - 10, str(one.prediction.layers), 10, more="text-anchor='middle'")
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='6' fill='{fill}' stroke='{color}' stroke-width='2'/>{ring}{label}"


def _said(report: FitReport) -> str:
    chosen = report.proposed or report.nearest
    if chosen is None:
        return f"{report.shapes.title} on {report.target.name}"
    found = chosen.prediction
    word = "proposed" if report.proposed else "nearest"
    return (
        f"{report.shapes.title} on {report.target.name}, {word}: {found.layers} layers as {found.recipe}, "
        f"{found.total:.2f} s, {found.memory_mb:.0f} MB"
    )


def _ticks(low: float, high: float) -> list[float]:
    steps = [
        digit * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digit in (1, 2, 5)
    ]
    return [step for step in steps if low <= step <= high]


def _text(
    x: float, y: float, words: str, size: int, fill: str = _QUIET, weight: str = "400", more: str = ""
) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' fill='{fill}' {more}>{escape(words)}</text>"
