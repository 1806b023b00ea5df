"""The tables of `docs/fit.md` and its picture, from the models' shapes and the targets' constants alone.

python docs/fit_tables.py            # writes them into the page
python docs/fit_tables.py --check    # says whether they are those of the code
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from prunella.building.fit_choice import MAX_WER_INCREASE, Alternative, FitReport, fit_model
from prunella.building.fit_picture import fit_svg
from prunella.targets.profile import TargetProfile, list_targets, load_target
from prunella.targets.shapes import read_shapes

HERE = Path(__file__).parent
PAGE = HERE / "fit.md"
PICTURE = HERE / "pictures" / "fit.svg"
MODELS = (
    "reference",
    "qwen3-asr-0.6b",
    "qwen3-asr-1.7b",
    "ultravox-1b",
    "granite-speech-2b",
    "voxtral-mini-3b",
    "ultravox-8b",
)
_BETWEEN = "<!-- tables: docs/fit_tables.py -->\n{text}<!-- end of tables -->"


def tables() -> str:
    """One for each model: a row for every target whose speed is known."""
    return "".join(_model(name) for name in MODELS)


def picture() -> str:
    """Qwen3-ASR-0.6B on a Raspberry Pi 5."""
    return fit_svg(fit_model(read_shapes("qwen3-asr-0.6b"), load_target("raspberry-pi-5")))


def _model(name: str) -> str:
    shapes = read_shapes(name)
    decoder = shapes.decoder
    billions = (decoder.layers * decoder.layer_weights + decoder.vocabulary * decoder.hidden) / 1e9
    heard = (
        " It hears 30 s whole, whatever was said (`@trimmed` does not)."
        if shapes.encoder.whole_seconds
        else ""
    )
    rows = [
        f"\n### {shapes.title}\n\n{decoder.layers} decoder layers, {billions:.2g} billion weights in the decoder; shapes: "
        f"{shapes.source}.{heard}\n\n"
        "| target | whole model, as | MB | first token, s | tokens/s | command, s | proposed | MB | command, s | errors |\n"
        "|:--|:--|--:|--:|--:|--:|:--|--:|--:|--:|\n"
    ]
    for target in map(load_target, list_targets()):
        if target.compute.known and not target.name.endswith("jetpack7"):  # the same boards
            rows.append(_row(fit_model(shapes, target), target))
    return "".join(rows)


def _row(report: FitReport, target: TargetProfile) -> str:
    whole = [one for one in report.alternatives if one.prediction.layers == report.shapes.decoder.layers]
    own = next((one for one in whole if one.prediction.recipe == target.recipe), whole[0])
    found = own.prediction
    chosen = report.proposed
    said = (
        f"{chosen.prediction.layers} layers, {chosen.prediction.recipe}"
        if chosen
        else f"nothing; nearest {report.nearest.prediction.layers} layers, {report.nearest.prediction.recipe}"
        if report.nearest
        else "nothing"
    )
    one: Alternative = chosen or report.nearest or own
    cells = (
        f"`{target.name}`",
        found.recipe,
        f"{found.memory_mb:.0f}{'' if own.fits else '!'}",
        f"{found.first_token:.2f}",
        f"{found.tokens_per_second:.0f}",
        f"{found.total:.2f}{'' if own.in_time else '!'}",
        said,
        f"{one.prediction.memory_mb:.0f}{'' if one.fits else '!'}",
        f"{one.prediction.total:.2f}{'' if one.in_time else '!'}",
        f"{one.increase:+.0f} %",
    )
    return f"| {' | '.join(cells)} |\n"


def written(page: str) -> str:
    """The page with its tables."""
    return re.sub(
        _BETWEEN.format(text="(?:.*\n)*?"), lambda _: _BETWEEN.format(text=tables()), page, count=1
    ).replace("{max}", f"{MAX_WER_INCREASE:g}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if they differ")
    check = parser.parse_args().check
    stale = []
    for path, text in ((PAGE, written(PAGE.read_text(encoding="utf-8"))), (PICTURE, picture())):
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"not those of the code: {', '.join(stale)}; python docs/fit_tables.py writes them")
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
