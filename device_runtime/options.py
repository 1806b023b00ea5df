"""Options that every verb has which opens a bundle to transcribe, and the transcriber that they ask for."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from prunella.device_runtime.base.common_options import add_threads
from prunella.device_runtime.base.ready_bundle import ready_bundle
from prunella.device_runtime.decoding.limits import EFFORTS, MIN_SCORE, PAYING_BEAMS, check_beams
from prunella.device_runtime.opening import ENGINES, open_transcriber

if TYPE_CHECKING:
    from prunella.device_runtime.transcriber import Transcriber

STRICT_HELP = "stop where hardware that the bundle asks for cannot be used, instead of saying so"
VERIFY_HELP = (
    "hash every file of the bundle, also those that an earlier start hashed and that nobody has touched since"
)
BEAMS_HELP = (
    f"transcripts that are followed at once; 0: {PAYING_BEAMS} where the model has a CTC head and the engine can, else as the bundle says "
    "(default: 0)"
)
LIVE_BEAMS_HELP = (
    "transcripts that are followed at once for final texts, 0 for as many as pay; 1 is greedy: more words are wrong, but on a slow "
    "device they come sooner (default: 0)"
)
EFFORT_HELP = (
    "how much of the decoder runs where a CTC head has spelled the speech: fast takes its text where every letter is sure, balanced where "
    "the decoder agrees; with --phrases always exact (default: the bundle's, exact)"
)
LANGUAGE_HELP = (
    "that is spoken, by its code or English name, where the model takes one (default: the model finds out)"
)
BUNDLE_HELP = "a directory made by `prunella export` or `prunella build` (default: the installed one, of the distribution prunella-bundle)"


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """`BUNDLE`, which may be left out: `open_from` then opens the installed one."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help=BUNDLE_HELP)


def add_effort(parser: argparse.ArgumentParser) -> None:
    """`--effort`."""
    parser.add_argument("--effort", choices=EFFORTS, help=EFFORT_HELP)


def take_bundle(args: argparse.Namespace) -> None:
    """Put the installed bundle into `args.bundle` where none is named, and say so.

    Raises:
        BundleError: none is installed.
    """
    if args.bundle is None:
        args.bundle = str(ready_bundle())
        sys.stderr.write(f"prunella: no bundle is named: using the installed one, {args.bundle}\n")


def add_runtime_options(
    parser: argparse.ArgumentParser, *, beams_help: str = BEAMS_HELP, language_help: str = LANGUAGE_HELP
) -> None:
    """How a bundle is opened and decoded: what `open_from` reads, and `--beams`."""
    parser.add_argument("--language", metavar="L", help=language_help)
    parser.add_argument(
        "--vocabulary",
        metavar="WORDS",
        default="",
        help="names and words that are likely to be said, for models whose prompt has a place for them (Qwen3-ASR)",
    )
    parser.add_argument(
        "--phrases",
        metavar="FILE",
        help="only what this file lists can be said, else there is no text; one phrase a line, as in "
        "`light: turn (on | off) the {room} light` (see device_runtime/decoding/phrase_grammar.py)",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=MIN_SCORE,
        metavar="S",
        help="refuse a phrase that scores lower, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument("--beams", type=int, default=0, metavar="N", help=beams_help)
    add_effort(parser)
    add_threads(parser)
    parser.add_argument(
        "--engine", metavar="NAME", help=f"{' or '.join(ENGINES)} (default: the bundle's first)"
    )
    parser.add_argument("--strict", action="store_true", help=STRICT_HELP)
    parser.add_argument("--verify", action="store_true", help=VERIFY_HELP)


def open_from(args: argparse.Namespace, *, any_language: bool = False) -> Transcriber:
    """The transcriber that the options ask for, but for beams: they are each verb's to choose, with `with_options`.

    Args:
        args: of the command line.
        any_language: a model that is told no language is none the worse for one that is asked for.

    Raises:
        UsageError: a number of beams or threads out of range, phrases that cannot be read, or a language that the model
            does not take.
        BundleError, EngineError: as `take_bundle` and `open_transcriber`; with `--strict` also hardware that cannot be used.
    """
    check_beams(args.beams)
    take_bundle(args)
    transcriber = open_transcriber(
        args.bundle,
        engine=args.engine,
        threads=args.threads,
        vocabulary=args.vocabulary,
        verify=args.verify,
        effort=args.effort,
    )
    if args.strict:
        from prunella.device_runtime.engines.providers import require_all

        require_all(transcriber.engine)
    if args.language is not None and (transcriber.prompt.languages or not any_language):
        transcriber = transcriber.with_language(args.language)
    if args.phrases is None:
        return transcriber
    from prunella.device_runtime.decoding.phrase_grammar import read_phrases

    return transcriber.with_phrases(read_phrases(args.phrases), min_score=args.min_score)
