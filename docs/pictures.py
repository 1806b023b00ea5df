"""Pictures of the README and the docs, from figures that are committed: the same files give the same pictures.

python docs/pictures.py            # writes docs/pictures/*.svg
python docs/pictures.py --check    # says which are not those of the figures
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "pictures"
CURVE = Path(__file__).parents[1] / "research" / "healing_curve" / "results" / "curve.json"
INK, QUIET, PAPER, RULE = "#1f1b2e", "#5c566e", "#ffffff", "#dcd8e6"
BEFORE, AFTER, OTHER = "#a9a3bb", "#6d3fc0", "#2f8f6b"
FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif'"


def text(x: float, y: float, words: str, *, size: int = 14, fill: str = INK, more: str = "") -> str:
    return f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{fill}' {more}>{escape(words)}</text>"


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}' role='img' {FONT}>"
    )
    paper = f"<rect width='{width}' height='{height}' rx='10' fill='{PAPER}' stroke='{RULE}'/>"
    return "\n".join([head, f"<title>{escape(title)}</title>", paper, *parts, "</svg>", ""])


def before_after() -> str:
    """Three small charts, one below the other: megabytes, seconds of work, words wrong; before, after, and Whisper tiny.en."""
    systems = {row["name"]: row for row in json.loads((HERE / "headline.json").read_text())["systems"]}
    rows = (
        ("before: 30 layers, fp32", systems["full, fp32"], BEFORE),
        ("after: 21 layers, healed, int4", systems["pruned and healed, int4"], AFTER),
        ("Whisper tiny.en, int8", systems["Whisper tiny.en, int8"], OTHER),
    )
    charts = (
        ("Size on disk", "mb", lambda v: f"{v:g} MB"),
        ("Work for a minute of short commands", "real_time_factor", lambda v: f"{60 * v:.1f} s"),
        ("Words wrong", "wer", lambda v: f"{v:g} %"),
    )
    parts, y = [], 34
    for name, key, shown in charts:
        parts.append(text(24, y, name, size=17, more="font-weight='600'"))
        most = max(row[key] for _, row, _ in rows)
        for line, (who, row, color) in enumerate(rows):
            top, length = y + 12 + 25 * line, max(3.0, 270 * row[key] / most)
            parts.append(text(24, top + 16, who, size=15, fill=QUIET))
            parts.append(f"<rect x='250' y='{top}' width='{length:.1f}' height='20' rx='3' fill='{color}'/>")
            parts.append(text(258 + length, top + 16, shown(row[key]), size=15, more="font-weight='600'"))
        y += 118
    for line, note in enumerate(
        (
            "Words: 89 LibriSpeech clips, 4 beams with CTC. Work: five clips of 1 to 3 s on 2 cores;",
            "Whisper always hears 30 s, so that on sentences it is the faster one.",
        )
    ):
        parts.append(text(24, y - 6 + 18 * line, note, size=13, fill=QUIET))
    title = "; ".join(
        f"{who}: " + ", ".join(f"{name.lower()} {shown(row[key])}" for name, key, shown in charts)
        for who, row, _ in rows
    )
    return svg(640, y + 28, title, parts)


def path() -> str:
    """What becomes of a decoder: measured, cut and bridged, healed, a bundle, text."""
    bundle = next(
        row
        for row in json.loads((HERE / "headline.json").read_text())["systems"]
        if row["name"] == "pruned and healed, int4"
    )
    steps = (
        ("analyze", "which layers", "turn little"),
        ("prune", "cut them,", "bridge the gap"),
        ("heal", "train what", "is left"),
        ("export", "a bundle for", "one target"),
        ("transcribe", "text, with", "no torch"),
    )
    cut, width, top, height = range(2, 11), 126, 56, 64
    parts = []
    for column, (verb, *words) in enumerate(steps):
        x = 22 + width * column
        parts.append(text(x, 34, verb, size=16, fill=AFTER, more="font-weight='600'"))
        for line, said in enumerate(words):
            parts.append(text(x, top + height + 24 + 18 * line, said, size=14, fill=QUIET))
        if column:
            parts.append(text(x - 20, top + height / 2 + 6, "→", size=16, fill=QUIET))
    for column, (layers, left) in enumerate(((range(30), ()), (range(30), cut), (range(21), ()))):
        for layer in layers:
            color = BEFORE if column == 0 and layer in cut else INK if column < 2 else AFTER
            if layer not in left:
                x = 22 + width * column + 3.2 * layer
                parts.append(f"<rect x='{x:g}' y='{top}' width='2.2' height='{height}' fill='{color}'/>")
    gap = 22 + width + 3.2 * cut.start
    parts.append(
        f"<path d='M{gap - 2:g} {top + height / 2:g}h{3.2 * len(cut):g}' stroke='{OTHER}' stroke-width='5'/>"
    )
    for column, lines in ((3, ("int4", f"{bundle['mb']} MB")), (4, ("go forward", "ten meters"))):
        x = 22 + width * column
        parts.append(
            f"<rect x='{x}' y='{top}' width='98' height='{height}' rx='8' fill='none' stroke='{INK if column == 3 else RULE}' stroke-width='2'/>"
        )
        for line, said in enumerate(lines):
            parts.append(text(x + 49, top + 27 + 22 * line, said, size=15, more="text-anchor='middle'"))
    return svg(
        660,
        176,
        "analyze, prune, heal, export, transcribe: of 30 decoder layers nine are cut, and the gap is bridged",
        parts,
    )


def layers_and_errors() -> str:
    """Word errors against layers removed: cut alone, bridged, trained."""
    points: list[dict[str, Any]] = json.loads(CURVE.read_text())["points"]
    named = {point["arm"]["name"]: point["dev"]["main"] for point in points}
    ways = (
        ("bridged, not trained", OTHER, {0: "full", 3: "3 bridge", 6: "6 bridge", 9: "9 bridge"}),
        (
            "bridged and trained",
            AFTER,
            {
                0: "full, same training",
                3: "3 bridge, joint",
                6: "6 bridge, joint",
                9: "9 bridge, joint",
                12: "12 bridge, joint",
            },
        ),
    )
    left, right, top, bottom, most = 70.0, 560.0, 60.0, 330.0, 22.0

    def at(layers: float, errors: float) -> tuple[float, float]:
        return left + (right - left) * layers / 13, bottom - (bottom - top) * errors / most

    parts = [
        text(24, 34, "Word errors in %, by decoder layers removed (of 30)", size=16, more="font-weight='600'")
    ]
    for errors in range(0, 21, 5):
        _, y = at(0, errors)
        parts.append(f"<line x1='{left}' x2='{right}' y1='{y:g}' y2='{y:g}' stroke='{RULE}'/>")
        parts.append(text(left - 10, y + 5, str(errors), size=13, fill=QUIET, more="text-anchor='end'"))
    for layers in (0, 3, 6, 9, 12):
        parts.append(
            text(at(layers, 0)[0], bottom + 22, str(layers), size=13, fill=QUIET, more="text-anchor='middle'")
        )
    for index, (label, color, arms) in enumerate(ways):
        shift = (-5, 5)[index]
        line = []
        for layers, arm in arms.items():
            found = named[arm]
            x, y = at(layers, 100 * found["wer"])
            low, high = at(0, 100 * found["wer_low"])[1], at(0, 100 * found["wer_high"])[1]
            line.append(f"{x + shift:.1f},{y:.1f}")
            parts.append(
                f"<line x1='{x + shift:.1f}' x2='{x + shift:.1f}' y1='{low:.1f}' y2='{high:.1f}' stroke='{color}' stroke-width='2'/>"
            )
            parts.append(f"<circle cx='{x + shift:.1f}' cy='{y:.1f}' r='5' fill='{color}'/>")
        parts.append(
            f"<polyline points='{' '.join(line)}' fill='none' stroke='{color}' stroke-opacity='0.35' stroke-width='2'/>"
        )
        y = 100 + 46 * index
        parts.append(f"<circle cx='600' cy='{y - 5}' r='6' fill='{color}'/>")
        parts.append(text(616, y, label, size=15))
    cut = ", ".join(f"{100 * named[f'{n} cut']['wer']:.0f} % with {n}" for n in (6, 9))
    parts.append(text(600, 210, "cut, neither bridged nor trained:", size=13, fill=QUIET))
    parts.append(text(600, 229, f"{cut} layers less:", size=13, fill=QUIET))
    parts.append(text(600, 248, "far above this picture", size=13, fill=QUIET))
    parts.append(
        text(
            24,
            376,
            "89 LibriSpeech clips of speakers never trained on, int8, 4 beams with CTC; bars: 95 % intervals",
            size=12,
            fill=QUIET,
        )
    )
    return svg(860, 394, "Word errors by layers removed", parts)


def redundancy() -> str:
    """The angle over every block of layers, and the block that `reference-pruned` is without."""
    body = json.loads((HERE / "redundancy.json").read_text())
    rows: list[list[float]] = body["distance_by_size"]  # [size - 1][start]
    cell_x, cell_y, left, bottom = 17.0, 12.0, 80.0, 420.0
    least, most = min(map(min, rows)), max(map(max, rows))

    def corner(start: float, size: float) -> tuple[float, float]:
        return left + cell_x * start, bottom - cell_y * size

    def shade(share: float) -> str:
        dark, light = (74, 32, 140), (246, 242, 252)
        mixed = (round(d + (w - d) * share**0.8) for d, w in zip(dark, light, strict=True))
        return f"#{''.join(f'{value:02x}' for value in mixed)}"

    parts = [
        text(
            24,
            34,
            "How far the hidden state turns over a block of decoder layers",
            size=16,
            more="font-weight='600'",
        )
    ]
    for size, row in enumerate(rows, start=1):
        for start, value in enumerate(row):
            x, y = corner(start, size)
            parts.append(
                f"<rect x='{x:g}' y='{y:g}' width='{cell_x}' height='{cell_y}' "
                f"fill='{shade((value - least) / (most - least))}'/>"
            )
        x, y = corner(row.index(min(row)) + 0.5, size - 0.5)
        parts.append(f"<circle cx='{x:g}' cy='{y:g}' r='2.6' fill='#ffffff' stroke='{INK}'/>")
    x, y = corner(2, 9)
    parts.append(
        f"<rect x='{x:g}' y='{y:g}' width='{cell_x}' height='{cell_y}' fill='none' stroke='#d62839' stroke-width='3'/>"
    )
    for start in range(0, 30, 5):
        x, _ = corner(start + 0.5, 0)
        parts.append(text(x, bottom + 18, str(start), size=12, fill=QUIET, more="text-anchor='middle'"))
    for size in (1, 5, 10, 15, 20, 25):
        _, y = corner(0, size - 0.5)
        parts.append(text(left - 8, y + 4, str(size), size=12, fill=QUIET, more="text-anchor='end'"))
    parts.append(text(left, bottom + 40, "first layer of the block", size=13, fill=QUIET))
    parts.append(text(24, 60, "layers in the block", size=13, fill=QUIET))
    parts.append(
        "<rect x='640' y='92' width='18' height='12' fill='none' stroke='#d62839' stroke-width='3'/>"
    )
    parts.append(text(668, 103, "2:11, the nine layers that were cut", size=13))
    parts.append(f"<circle cx='649' cy='126' r='3' fill='#ffffff' stroke='{INK}'/>")
    parts.append(text(668, 131, "least angle among blocks of that size", size=13))
    for step in range(6):
        parts.append(f"<rect x='{640 + 30 * step}' y='150' width='30' height='14' fill='{shade(step / 5)}'/>")
    parts.append(text(640, 181, f"{least:.2f}", size=12, fill=QUIET))
    parts.append(text(820, 181, f"{most:.2f} of a half turn", size=12, fill=QUIET, more="text-anchor='end'"))
    for line, words in enumerate(
        (
            "Dark: the block turns the state little,",
            "so cutting it takes little away.",
            "The cut is not at the least angle of its",
            "size: of the six least it had the lowest",
            "loss once bridged, on more speech.",
        )
    ):
        parts.append(text(640, 222 + 20 * line, words, size=14))
    return svg(920, 476, "Angle over every block of decoder layers", parts)


PICTURES: dict[str, Callable[[], str]] = {
    "before_after.svg": before_after,
    "path.svg": path,
    "layers_and_errors.svg": layers_and_errors,
    "redundancy.svg": redundancy,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where a picture differs"
    )
    check = parser.parse_args().check
    stale = []
    for name, draw in PICTURES.items():
        drawn, path = draw(), HERE / name
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != drawn):
            stale.append(name)
        elif not check:
            path.write_text(drawn, encoding="utf-8")
            print(path)
    if stale:
        print(f"not drawn from today's figures: {', '.join(stale)}; run python docs/pictures.py")
    return int(bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
