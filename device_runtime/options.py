"""Options that several verbs have, the same in each."""

from __future__ import annotations

import argparse

from prunella.device_runtime.decoding.engine import PAYING_BEAMS
from prunella.device_runtime.decoding.phrase_grammar import read_phrases
from prunella.device_runtime.decoding.phrases import MIN_SCORE
from prunella.device_runtime.transcriber import Transcriber

STRICT_HELP = "stop where hardware that the bundle asks for cannot be used, instead of saying so"
BEAMS_HELP = (
    f"transcripts that are followed at once; 0: {PAYING_BEAMS} where the model has a CTC head and the engine can, else as the bundle says "
    "(default: 0)"
)
LIVE_BEAMS_HELP = (
    "transcripts that are followed at once for final texts, 0 for as many as pay; 1 is greedy: more words are wrong, but on a slow "
    "device they come sooner (default: 0)"
)


def add_phrase_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that hold a transcriber to a list of phrases, the same for every verb that transcribes."""
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


def hold_to_phrases(transcriber: Transcriber, args: argparse.Namespace) -> Transcriber:
    """The transcriber that `--phrases` and `--min-score` ask for.

    Raises:
        UsageError: the file cannot be read, or holds no phrases.
    """
    if args.phrases is None:
        return transcriber
    return transcriber.limited_to(read_phrases(args.phrases), min_score=args.min_score)
