"""Word error rates of a bundle or a model on real speech, by source, with intervals; of two systems also the difference."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tqdm

from prunella.device_runtime.base.common_options import add_speech, add_threads
from prunella.device_runtime.base.cores import check_threads
from prunella.device_runtime.base.errors import AudioError, UsageError
from prunella.device_runtime.decoding.limits import check_beams
from prunella.device_runtime.engines.providers import require_all
from prunella.device_runtime.options import BEAMS_HELP, LANGUAGE_HELP, STRICT_HELP, add_effort
from prunella.evaluation.manifest import SpeechManifest, Utterance, read_manifest
from prunella.evaluation.marked import marked
from prunella.evaluation.records import ClipRecord, RecordsFile, check_records, clip_record
from prunella.evaluation.report import (
    EvaluationReport,
    compare_reports,
    render_report,
    summarize,
)
from prunella.evaluation.systems import BASELINE, System, check_system, open_system, system_kind
from prunella.evaluation.word_errors import normalize

_SAMPLING_RATE = 16_000
Scorer = Callable[[npt.NDArray[np.float32], str], tuple[float, int]]


def evaluate(
    system: System,
    manifest: SpeechManifest,
    *,
    score: bool = True,
    name: str = "system",
    fingerprint: str | None = None,
    records: str | Path | None = None,
    progress: bool = False,
) -> EvaluationReport:
    """Transcribe every clip of a manifest and count the errors.

    Args:
        system: anything with `transcribe(samples) -> Transcript`.
        manifest: the clips.
        score: also the cross-entropy of the reference texts, if the system has `score(samples, text)`.
        name: how the report calls the system.
        fingerprint: identity of the system in the records file (default: its name).
        records: JSONL file; clips that it holds for this system are not transcribed again, new ones are appended.
        progress: a bar on stderr, if stderr is a terminal.

    Raises:
        ManifestError: no clip could be evaluated.
    """
    scorer = getattr(system, "score", None) if score else None
    kept = RecordsFile(records, name, fingerprint or name) if records is not None else None
    results: list[ClipRecord] = []
    skipped: list[str] = []
    # disable=None: tqdm shows nothing where stderr is not a terminal.
    for utterance in tqdm.tqdm(
        manifest.utterances, desc=name, unit="clip", file=sys.stderr, disable=None if progress else True
    ):
        known = kept.find(utterance) if kept else None
        if known is not None and (scorer is None or known.scored):
            results.append(known)
            continue
        if not normalize(utterance.text):
            skipped.append(f"{utterance.id}: its text {utterance.text!r} has no words")
            sys.stderr.write(f"skipped {skipped[-1]}\n")
            continue
        try:
            record = _transcribed(system, scorer, utterance)
        except AudioError as error:
            skipped.append(str(error))
            sys.stderr.write(f"skipped {utterance.id}: {error}\n")
            continue
        results.append(record)
        if kept is not None:
            kept.append(utterance, record)
    return summarize(name, results, skipped)


def _transcribed(system: System, scorer: Scorer | None, utterance: Utterance) -> ClipRecord:
    samples = utterance.load()
    start = time.perf_counter()
    transcript = system.transcribe(samples)
    elapsed = time.perf_counter() - start
    if not transcript.timings.total:
        transcript = replace(transcript, timings=replace(transcript.timings, total=elapsed))
    return clip_record(
        utterance,
        transcript,
        seconds=len(samples) / _SAMPLING_RATE,
        scored=scorer is not None,
        score=_score(scorer, samples, utterance.text),
    )


def _score(scorer: Scorer | None, samples: npt.NDArray[np.float32], text: str) -> tuple[float, int] | None:
    if scorer is None:
        return None
    try:
        return scorer(samples, text)
    except AudioError:
        return None  # too long to be scored in one piece: it still counts for the WER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella eval`."""
    parser.add_argument(
        "system", metavar="SYSTEM", help=f"a bundle, a model folder, 'reference', a Hub id or '{BASELINE}'"
    )
    parser.add_argument(
        "system_b", metavar="SYSTEM_B", nargs="?", help="a second one: adds the paired difference"
    )
    add_speech(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="the first N clips of every source")
    parser.add_argument(
        "--seed", type=int, help="with --limit: N clips of every source drawn at random by this seed"
    )
    parser.add_argument("--max-seconds", type=float, metavar="S", help="only clips of at most S seconds")
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME", help="only this source (may be repeated)"
    )
    parser.add_argument(
        "--clip",
        action="append",
        default=[],
        metavar="NAME",
        help="only this clip, by its file's name (may be repeated)",
    )
    parser.add_argument(
        "--show",
        type=int,
        nargs="?",
        const=sys.maxsize,
        metavar="N",
        help="also the first N transcripts (default: all) under what was said, wrong words marked",
    )
    parser.add_argument("--beams", type=int, default=0, metavar="N", help=BEAMS_HELP)
    add_effort(parser)
    parser.add_argument("--no-guards", action="store_true", help="no repeat stop and no silence gate")
    parser.add_argument("--no-score", action="store_true", help="no cross-entropy of the reference texts")
    parser.add_argument("--language", metavar="L", help=LANGUAGE_HELP)
    add_threads(parser, "the system's own")
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="of bundles that have several (as BUNDLE@NAME; default: the bundle's first)",
    )
    parser.add_argument("--strict", action="store_true", help=STRICT_HELP)
    parser.add_argument(
        "--records", metavar="FILE", help="JSONL of every clip; an interrupted run goes on from it"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="JSON on stdout: overall and one entry a source")


def run(args: argparse.Namespace) -> int:
    """`prunella eval`: evaluate one or two systems and write the result to stdout."""
    check_threads(args.threads)
    check_beams(args.beams)
    if args.show is not None and (args.show < 1 or args.json):
        raise UsageError("--show takes a number of clips from 1, and prints text: leave it out with --json")
    if args.records is not None:
        check_records(args.records)
    manifest = read_manifest(args.speech).select(
        sources=args.source, clips=args.clip, max_seconds=args.max_seconds, limit=args.limit, seed=args.seed
    )
    names = [args.system] + ([args.system_b] if args.system_b else [])
    if args.engine:
        names = [f"{name}@{args.engine}" if system_kind(name) == "bundle" else name for name in names]
    for name in names[1:]:
        check_system(name)  # evaluating the first takes minutes
    reports = [_evaluate_named(name, manifest, args) for name in names]
    paired = compare_reports(*reports) if len(reports) == 2 else None
    if args.json:
        if paired is None:
            result = reports[0].to_json()
        else:
            a, b = (report.to_json() for report in reports)
            result = {"systems": names, "a": a, "b": b, "paired": paired.to_json()}
        sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        return 0
    parts = []
    for report in reports:
        parts += [marked(one.id, one.reference, one.hypothesis) for one in report.records[: args.show or 0]]
        parts.append(render_report(report))
    if paired is not None:
        parts.append(paired.verdict())
    sys.stdout.write("\n\n".join(parts) + "\n")
    return 0


def _evaluate_named(name: str, manifest: SpeechManifest, args: argparse.Namespace) -> EvaluationReport:
    # Opened here so that the first system's memory is free before the second one is loaded.
    opened = open_system(
        name,
        guards=not args.no_guards,
        threads=args.threads,
        beams=args.beams,
        language=args.language,
        effort=args.effort,
    )
    if args.strict:
        require_all(getattr(opened.system, "engine", None))
    return evaluate(
        opened.system,
        manifest,
        score=not args.no_score,
        name=name,
        fingerprint=opened.fingerprint,
        records=args.records,
        progress=not args.no_progress,
    )
