"""Re-quantise a float bundle without its model, as one recipe or as the smallest that is good enough.

`prunella quantize out/reference-fp32 --recipe int4 -o out/reference-int4`
`prunella quantize out/reference-fp32 --auto --max-wer-increase 1.0 --speech DEV.jsonl -o out/reference-small`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prunella.device_runtime.base.common_options import add_output, add_speech, add_threads
from prunella.device_runtime.base.cores import check_threads
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.outputs import check_output
from prunella.device_runtime.bundle import Bundle, open_bundle
from prunella.evaluation.manifest import read_manifest
from prunella.quantize.bundle_writer import requantize
from prunella.quantize.gguf_recipes import GGUF_RECIPES
from prunella.quantize.recipes import BLOCK_SIZES, RECIPES


def quantize(bundle: str | Path, recipe: str, out: str | Path, *, block_size: int | None = None) -> Bundle:
    """Verify the float bundle at `bundle` and write it as `recipe` to `out`. Arguments and errors as those of `requantize`."""
    return requantize(open_bundle(bundle), recipe, out, block_size=block_size)


def add_block_size(parser: argparse.ArgumentParser) -> None:
    """`--block-size`, for verbs that write 4-bit layers."""
    sizes = ", ".join(map(str, BLOCK_SIZES))
    parser.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help=f"inputs that share a scale in 4-bit layers on ONNX Runtime: {sizes} (default: what the model was healed for "
        "with --rounding, else the recipe's)",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella quantize`."""
    summaries = {name: recipe.summary for name, recipe in RECIPES.items()}
    summaries |= {name: recipe.summary for name, recipe in GGUF_RECIPES.items()}
    recipes = "; ".join(f"{name}: {summary}" for name, summary in summaries.items())
    parser.add_argument("bundle", type=Path, help="a float bundle")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--recipe", help=recipes)
    how.add_argument(
        "--auto",
        action="store_true",
        help="the smallest recipe that keeps the WER, found by trying; resumable",
    )
    add_block_size(parser)
    add_output(parser, "folder of the new bundle")
    auto = parser.add_argument_group("with --auto")
    add_speech(auto, "transcribed clips to decide on", required=False)
    auto.add_argument(
        "--max-wer-increase",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="over the float bundle's WER (default: %(default)s)",
    )
    auto.add_argument(
        "--recipes", metavar="A,B", help="only these (default: all that bundle and target can take)"
    )
    auto.add_argument("--limit", type=int, metavar="N", help="the first N clips of every source")
    auto.add_argument("--max-seconds", type=float, metavar="S", help="only clips of at most S seconds")
    add_threads(auto)


def run(args: argparse.Namespace) -> None:
    """Entry of `prunella quantize`."""
    check_threads(args.threads)
    check_output(args.out, inputs=[args.bundle, args.speech])
    if args.auto and args.block_size is not None:
        raise UsageError("--auto tries the recipes as they are: leave out --block-size")
    bundle = (
        _auto(args) if args.auto else quantize(args.bundle, args.recipe, args.out, block_size=args.block_size)
    )
    sys.stderr.write(f"{bundle.manifest.recipe}: {bundle.total_bytes / 1e6:.1f} MB\n")
    sys.stdout.write(f"{bundle.path}\n")


def _auto(args: argparse.Namespace) -> Bundle:
    from prunella.quantize.smallest import quantize_smallest

    if args.speech is None:
        raise UsageError("--auto decides on real speech: give --speech MANIFEST, JSONL of transcribed clips")
    manifest = read_manifest(args.speech).select(max_seconds=args.max_seconds, limit=args.limit)
    bundle, search = quantize_smallest(
        open_bundle(args.bundle),
        args.out,
        manifest,
        max_wer_increase=args.max_wer_increase / 100,
        recipes=args.recipes.split(",") if args.recipes else (),
        threads=args.threads,
        progress=True,
    )
    sys.stderr.write(search.table() + "\n")
    return bundle
