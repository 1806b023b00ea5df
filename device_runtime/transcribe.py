"""Audio files to text, with a bundle: the one that is named first, else the installed one.

The text goes to stdout: alone for one file, as `FILE<TAB>text` lines for several, as one JSON object a line with
--json. Timings go to stderr. A file that cannot be transcribed does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prunella.device_runtime.base.errors import AudioError
from prunella.device_runtime.base.ready_bundle import bundle_and_audio
from prunella.device_runtime.base.standard_streams import piped
from prunella.device_runtime.options import add_bundle, add_runtime_options, open_from

if TYPE_CHECKING:
    from prunella.device_runtime.transcriber import Transcriber
    from prunella.device_runtime.transcript import Transcript


def transcribe_files(
    transcriber: Transcriber, paths: Iterable[str | Path]
) -> Iterator[tuple[str | Path, Transcript | AudioError]]:
    """Transcribe files one by one ("-": standard input), yielding each path with its transcript, or with why there is none."""
    from prunella.device_runtime.sound.audio import open_audio  # after the bundle's graphs began to load

    for path in paths:
        source, name = (piped(), "standard input") if path == "-" else (path, None)
        try:
            with open_audio(source, name=name) as audio:
                outcome: Transcript | AudioError = transcriber.transcribe(audio)
        except AudioError as error:
            outcome = error
        yield path, outcome


def timing_summary(transcript: Transcript) -> str:
    """One line: where the time went."""
    t = transcript.timings
    count = len(transcript.tokens)
    rate = f", {count / t.decode:.0f} tokens/s" if t.decode and count else ""
    return (
        f"{t.audio:.2f} s of audio in {t.total:.2f} s (real-time factor {t.real_time_factor:.3f}): "
        f"encode {t.encode:.3f} s, prefill {t.prefill:.3f} s, decode {t.decode:.3f} s ({count} tokens{rate}); "
        f"first token after {t.first_token:.3f} s; {transcript.engine}, ended by {transcript.finish_reason}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="wav, flac, ogg, opus or mp3, any rate and length; webm, m4a, mp4, aac, wma where ffmpeg is installed; - is standard input",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per file, with segments and timings"
    )
    parser.add_argument("--no-guards", action="store_true", help="no silence gate and no repeat stop")
    add_runtime_options(parser)


def run(args: argparse.Namespace) -> int:
    args.bundle, args.files = bundle_and_audio([*filter(None, [args.bundle]), *args.files])
    if "-" in args.files:
        piped()  # a terminal is refused before any work
    transcriber = open_from(args).with_options(beams=args.beams, guards=False if args.no_guards else None)
    failed = False
    for path, outcome in transcribe_files(transcriber, args.files):
        if isinstance(outcome, AudioError):
            failed = True
            sys.stderr.write(f"prunella: {' '.join(str(outcome).split())}\n")
            if not args.json:
                continue
            line = json.dumps({"file": path, "error": str(outcome)}, ensure_ascii=False)
        else:
            for warning in outcome.warnings:
                sys.stderr.write(f"prunella: {path}: {warning}\n")
            sys.stderr.write(f"{path}: {timing_summary(outcome)}\n")
            if args.json:
                line = json.dumps({"file": path, **outcome.to_json()}, ensure_ascii=False)
            else:
                line = outcome.text if len(args.files) == 1 else f"{path}\t{outcome.text}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()  # a reader down the pipe gets each file's text when it is done
    return int(failed)
