"""Speed and memory of one or several systems on real speech, each in a process of its own, clips alternating.

Exit code 1 if a transcript came out empty: that is a failure, not a fast run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import tqdm

from prunella.benchmark.compare import Comparison, measure
from prunella.benchmark.record import BenchRecord
from prunella.device_runtime.base.common_options import add_speech, add_threads
from prunella.device_runtime.base.cores import check_threads
from prunella.device_runtime.decoding.limits import check_beams
from prunella.device_runtime.options import BEAMS_HELP, LANGUAGE_HELP, STRICT_HELP, add_effort
from prunella.evaluation.bootstrap import Interval
from prunella.evaluation.manifest import read_manifest
from prunella.evaluation.systems import BASELINE
from prunella.evaluation.table import megabytes, number, render_table
from prunella.targets.profile import load_target


def render_comparison(comparison: Comparison, *, markdown: bool = False) -> str:
    """A table of the records, the speed-ups over the first system, the conditions."""
    lines = [render_records(comparison.records, markdown=markdown)]
    for speed_up in comparison.speed_ups:
        decode = "" if speed_up.decode is None else f", decode a token {_times(speed_up.decode)}"
        lines.append(
            f"{speed_up.system} against {speed_up.base}: end to end {_times(speed_up.end_to_end)}{decode}"
        )
    for record in comparison.records:
        if record.failed:
            lines.append(f"FAILED {record.system}: {record.empty} of {record.clips} transcripts are empty")
    first = comparison.records[0]
    c = first.conditions
    versions = ", ".join(f"{name} {version}" for name, version in c.get("versions", {}).items())
    lines.append(
        f"{first.clips} clips, {first.audio_seconds:.0f} s of audio, median of {first.repeats}; "
        f"{c.get('cpu', 'unknown CPU')}, {c.get('cpu_threads', '?')} threads, load {c.get('load_average', '?')}, "
        f"governor {c.get('governor', 'unknown')}, {c.get('temperature_celsius', '?')} °C; Python {c.get('python')}, {versions}"
        + (f"; --beams {c['beams']}" if "beams" in c else "")
        + (f"; --effort {c['effort']}" if "effort" in c else "")
    )
    return "\n".join(lines)


def render_records(records: Sequence[BenchRecord], *, markdown: bool = False) -> str:
    """One row a system."""
    header = ["system", "engine", "threads", "MB on disk", "load s", "first call s", "RTF", "x real time"]
    header += ["decode tok/s", "first token s", "peak MB", "empty"]
    rows = [
        [
            record.system,
            record.engine,
            _threads(record),
            megabytes(record.disk_bytes),
            number(record.load_seconds),
            number(record.first_call_seconds),
            number(record.real_time_factor, 3),
            number(record.times_real_time, 1),
            number(record.decode_tokens_per_second, 0),
            number(record.first_token_seconds, 3),
            megabytes(record.peak_memory_bytes),
            str(record.empty),
        ]
        for record in records
    ]
    if any(record.of_predicted is not None for record in records):
        header.append("of predicted")
        for row, record in zip(rows, records, strict=True):
            row.append(number(record.of_predicted))
    return render_table(header, rows, markdown=markdown)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella bench`."""
    what = f"bundles (BUNDLE@ENGINE for another engine than its first), model folders, 'reference', Hub ids or '{BASELINE}'"
    parser.add_argument("systems", metavar="SYSTEM", nargs="+", help=what)
    add_speech(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="the first N clips of every source")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="only clips of at most S seconds")
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME", help="only this source (may be repeated)"
    )
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="time every clip N times, take the median (3)"
    )
    add_threads(parser, "each system's own")
    parser.add_argument(
        "--beams", type=int, metavar="N", help=f"{BEAMS_HELP.partition(' (default')[0]} (default: greedy)"
    )
    add_effort(parser)
    parser.add_argument("--language", metavar="L", help=LANGUAGE_HELP)
    parser.add_argument(
        "--target",
        metavar="TARGET",
        help="hold bundles against what `prunella fit` predicts for it: a name, or the .toml of `prunella fit --calibrate`",
    )
    parser.add_argument("--strict", action="store_true", help=STRICT_HELP)
    parser.add_argument("--no-guards", action="store_true", help="no repeat stop and no silence gate")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--markdown", action="store_true", help="the table in markdown")
    parser.add_argument(
        "--json", action="store_true", help="JSON on stdout: records and speed_ups over the first system"
    )


def run(args: argparse.Namespace) -> int:
    """`prunella bench`."""
    check_threads(args.threads)
    check_beams(args.beams)
    target = load_target(args.target) if args.target else None
    manifest = read_manifest(args.speech).select(
        sources=args.source, max_seconds=args.max_seconds, limit=args.limit
    )
    total = len(args.systems) * len(manifest) * max(args.repeat, 0)
    with tqdm.tqdm(
        total=total, desc="bench", unit="clip", file=sys.stderr, disable=args.no_progress or None
    ) as bar:
        comparison = measure(
            args.systems,
            manifest,
            repeat=args.repeat,
            guards=not args.no_guards,
            threads=args.threads,
            beams=args.beams,
            language=args.language,
            effort=args.effort,
            strict=args.strict,
            target=target,
            tick=bar.update,
        )
    if args.json:
        sys.stdout.write(json.dumps(comparison.to_json(), indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(render_comparison(comparison, markdown=args.markdown) + "\n")
    return 1 if any(record.failed for record in comparison.records) else 0


def _threads(record: BenchRecord) -> str:
    """The fewest and the most that worked at once, or what was asked for."""
    fewest, most = record.conditions.get("threads_used", (record.threads, record.threads))
    return "own" if most is None else f"{most}" if fewest == most else f"{fewest}-{most}"


def _times(interval: Interval) -> str:
    return f"{interval.value:.2f} times as fast ({interval.low:.2f}-{interval.high:.2f})"
