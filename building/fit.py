"""Does a model fit a device, and how fast is it there? Predicted before anything is built, downloaded or bought.

    prunella fit qwen3-asr-0.6b --target raspberry-pi-5
    prunella fit out/demo/pruned-int4 --target jetson-orin-nano
    prunella fit --calibrate -o here.toml      # measure this machine, in about a minute
    prunella fit reference --target here.toml

A model is a name whose shapes are known, a config.json or a checkpoint's folder (weights are not read), or a bundle. The
table has memory, the time to the first token and to the whole text of a 3 s command, decoded greedily; every number of
layers with every recipe. Exit code 1 if nothing keeps the target's budgets.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prunella.building.fit_choice import MAX_WER_INCREASE, Alternative, FitReport, fit_model
from prunella.building.fit_picture import draw_fit
from prunella.device_runtime.base.common_options import add_output, add_threads
from prunella.device_runtime.base.cores import check_threads, physical_cores
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.files import write_text
from prunella.device_runtime.bundle import MANIFEST_NAME, open_bundle
from prunella.evaluation.table import render_table
from prunella.quantize.storage import kernels
from prunella.targets.calibrate import profile_text
from prunella.targets.ceilings import measure_ceilings
from prunella.targets.fit import COMMAND_SECONDS, RUNTIME_MB, fit_bundle
from prunella.targets.profile import TargetProfile, load_target
from prunella.targets.shapes import known_models, read_shapes


def render_report(report: FitReport, *, markdown: bool = False) -> str:
    """The table of alternatives, and the sentence that proposes one."""
    rows = [_row(one, report) for one in report.alternatives]
    header = ["", "layers", "recipe", "memory MB", "first token s", "tokens/s", "command s", "RTF", "WER"]
    budget = (
        f"{report.target.memory.budget_mb} MB" if report.target.memory.budget_mb else "no limit of memory"
    )
    lines = [
        f"{report.shapes.title} on {report.target.name}: predicted for {report.alternatives[0].prediction.seconds:g} s of "
        f"speech; wanted are {budget} and a text after {report.target.latency.command_seconds:g} s",
        render_table(header, rows, markdown=markdown),
        f"* proposed; ! over a budget. Memory counts {RUNTIME_MB} MB of runtime; WER: "
        + (
            f"{report.shapes.wer:g} % ({report.shapes.wer_source}) and the rise that healed cuts and roundings of other models showed"
            if report.shapes.wer is not None
            else "the rise that healed cuts and roundings of other models showed"
        ),
        f"speeds: {report.target.compute.source}",
        proposal(report),
    ]
    return "\n".join(lines)


def proposal(report: FitReport) -> str:
    """What to build, in a line."""
    chosen = report.proposed
    if chosen is None:
        nearest = report.nearest
        assert nearest is not None
        found = nearest.prediction
        return (
            f"nothing keeps both budgets; nearest: {found.layers} layers as {found.recipe}, {found.memory_mb:.0f} MB, "
            f"{found.total:.2f} s"
        )
    found, whole = chosen.prediction, report.shapes.decoder.layers
    how = (
        f"prunella export {report.shapes.checkpoint} --target {report.target.name} --recipe {found.recipe}"
        if found.layers == whole
        else f"prunella build {report.shapes.checkpoint} --target {report.target.name} --fit --heal"
    )
    return (
        f"proposed: {found.layers} of {whole} layers as {found.recipe}: {found.memory_mb:.0f} MB, {found.total:.2f} s, "
        f"{chosen.increase:+.0f} % of word errors ({how})"
    )


def _row(one: Alternative, report: FitReport) -> list[str]:
    found = one.prediction
    mark = "*" if one is report.proposed else "" if one.good else "!"
    errors = f"{one.increase:+.0f} %" if one.wer is None else f"{one.wer:.1f} ({one.increase:+.0f} %)"
    return [
        mark,
        str(found.layers),
        found.recipe,
        f"{found.memory_mb:.0f}{'' if one.fits else '!'}",
        f"{found.first_token:.2f}",
        f"{found.tokens_per_second:.0f}",
        f"{found.total:.2f}{'' if one.in_time else '!'}",
        f"{found.real_time_factor:.2f}",
        errors,
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella fit`."""
    known = ", ".join(known_models())
    parser.add_argument(
        "model",
        metavar="MODEL|BUNDLE",
        nargs="?",
        help=f"{known}; a config.json, a checkpoint's folder; or a bundle ('@trimmed' behind a model that hears 30 s "
        "whole: healed on audio of its true length)",
    )
    parser.add_argument("--target", metavar="TARGET", help="a name of `prunella targets list`, or a .toml")
    parser.add_argument(
        "--max-wer-increase",
        type=float,
        default=MAX_WER_INCREASE,
        metavar="P",
        help="most that word errors may be expected to rise, in percent of the whole model's (default: %(default)g)",
    )
    parser.add_argument(
        "--layers", type=int, action="append", metavar="N", help="keep so many layers (repeatable)"
    )
    parser.add_argument("--recipe", action="append", metavar="R", help="only this recipe (repeatable)")
    parser.add_argument("--vocabulary", type=int, metavar="N", help="tokens that are kept of the vocabulary")
    parser.add_argument(
        "--seconds", type=float, default=COMMAND_SECONDS, metavar="S", help="of speech (default: %(default)g)"
    )
    parser.add_argument(
        "--beams", type=int, default=1, metavar="N", help="transcripts followed at once (default: 1)"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure this machine first, in about a minute, and predict for it (with -o: keep it as a target)",
    )
    add_threads(parser, "the same; for --calibrate")
    add_output(parser, "for --calibrate: the target's file, a .toml", required=False)
    parser.add_argument("--picture", type=Path, metavar="SVG", help="draw the alternatives too")
    parser.add_argument("--markdown", action="store_true", help="the table in markdown")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """`prunella fit`."""
    check_threads(args.threads)
    if args.seconds <= 0:
        raise UsageError(f"--seconds {args.seconds:g}: give more than 0")
    if args.beams < 1:
        raise UsageError(f"--beams {args.beams}: give 1 or more")
    target = _calibrated(args) if args.calibrate else None
    if args.model is None:
        if target is None:
            raise UsageError(
                f"name a model ({', '.join(known_models())}, a config.json, a bundle), or --calibrate"
            )
        return 0
    if target is None:
        if args.target is None:
            raise UsageError(
                "name a --target (`prunella targets list`), or --calibrate to measure this machine"
            )
        target = load_target(args.target)
    if (Path(args.model) / MANIFEST_NAME).is_file():
        return _bundle(args, target)
    report = fit_model(
        read_shapes(args.model),
        target,
        max_wer_increase=args.max_wer_increase,
        layers=args.layers or (),
        recipes=args.recipe or (),
        vocabulary=args.vocabulary,
        seconds=args.seconds,
        beams=args.beams,
    )
    if args.picture:
        draw_fit(report, args.picture)
    if args.json:
        sys.stdout.write(json.dumps(report_json(report), indent=2) + "\n")
    else:
        sys.stdout.write(render_report(report, markdown=args.markdown) + "\n")
    return 0 if report.proposed is not None else 1


def report_json(report: FitReport) -> dict[str, Any]:
    """The report as data: MB and seconds."""
    return {
        "model": report.shapes.title,
        "source": report.shapes.source,
        "target": report.target.name,
        "alternatives": [_plain(one) for one in report.alternatives],
        "proposed": None if report.proposed is None else _plain(report.proposed),
    }


def _plain(one: Alternative) -> dict[str, Any]:
    found = one.prediction
    derived = {
        name: getattr(found, name)
        for name in ("memory_mb", "first_token", "tokens_per_second", "total", "real_time_factor")
    }
    return {
        **asdict(found),
        **derived,
        "wer": one.wer,
        "increase": one.increase,
        "fits": one.fits,
        "in_time": one.in_time,
    }


def _bundle(args: argparse.Namespace, target: TargetProfile) -> int:
    bundle = open_bundle(args.model, verify=False)
    fit = fit_bundle(target, bundle, seconds=args.seconds, beams=args.beams)
    if args.json:
        sys.stdout.write(
            json.dumps({**asdict(fit), "fits": fit.fits, "needed_mb": fit.needed_mb}, indent=2) + "\n"
        )
    else:
        sys.stdout.write(
            f"{bundle.manifest.name} ({bundle.manifest.recipe}) on {target.name}: {fit.describe()}\n"
        )
        if target.compute.source:
            sys.stdout.write(f"speeds: {target.compute.source}\n")
    late = (
        fit.prediction is not None
        and fit.prediction.total > target.latency.command_seconds * args.seconds / COMMAND_SECONDS
    )
    return 0 if fit.fits and not late else 1


def _calibrated(args: argparse.Namespace) -> TargetProfile:
    """This machine as a target, measured now."""
    threads = args.threads or physical_cores()
    sys.stderr.write(
        f"measuring this machine with {threads} thread{'s' * (threads > 1)}: about half a minute\n"
    )
    compute = measure_ceilings(threads, kernels())
    text = profile_text(
        compute, threads, base=args.target or "x86-cpu", name=Path(args.out).stem if args.out else "here"
    )
    if args.out:
        write_text(Path(args.out), text)
        return load_target(args.out)
    sys.stderr.write(text)
    base = load_target(args.target or "x86-cpu")
    return replace(base, name=f"this machine ({base.name})", compute=compute, threads=threads)
