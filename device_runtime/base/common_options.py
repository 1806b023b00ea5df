"""Options that mean the same in every verb, and the words that explain them."""

from __future__ import annotations

import argparse
from pathlib import Path

MANIFEST_HELP = "JSONL: audio_filepath, duration, text"


def add_output(
    parser: argparse._ActionsContainer, what: str, *, required: bool = True, default: str | None = None
) -> None:
    """`-o`, `--out`, `--output`: the folder that is written, in `args.out`.

    Args:
        parser: it, or a group of it.
        what: the folder, in words.
        required: whether it must be given.
        default: where it goes if it is not.
    """
    parser.add_argument(
        "-o", "--out", "--output", required=required, default=default, metavar="DIR", help=what
    )


def add_speech(parser: argparse._ActionsContainer, purpose: str = "", *, required: bool = True) -> None:
    """`--speech`: a manifest of transcribed recordings, in `args.speech` as a path.

    Args:
        parser: it, or a group of it.
        purpose: what the speech is for, where the verb does not say it.
        required: whether it must be given.
    """
    what = f"{purpose} ({MANIFEST_HELP})" if purpose else MANIFEST_HELP
    parser.add_argument("--speech", required=required, type=Path, metavar="MANIFEST", help=what)


def add_stream(parser: argparse.ArgumentParser) -> None:
    """How a model's weights are read: layer by layer from disk, or whole."""
    parser.add_argument(
        "--stream",
        default="auto",
        choices=("auto", "on", "off"),
        help="read the decoder layer by layer from disk (default: where it is larger than half of the free memory)",
    )


def add_spoken_language(parser: argparse._ActionsContainer) -> None:
    """`--language`: of the rows of a manifest that name none, in `args.language`."""
    parser.add_argument(
        "--language",
        default="",
        metavar="CODE",
        help="of the speech whose manifest names none, such as de, for models that are told it or say it (default: English)",
    )


def add_threads(
    parser: argparse._ActionsContainer, default: str = "the bundle's; both take fewer beside other programs"
) -> None:
    """`--threads`: of the CPU, in `args.threads`; None is whatever `default` says, 0 one per physical core."""
    parser.add_argument(
        "--threads", type=int, metavar="N", help=f"CPU threads; 0: one per physical core (default: {default})"
    )
