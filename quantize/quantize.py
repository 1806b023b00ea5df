"""Re-quantise a float bundle without its model.

`prunella quantize out/reference-fp32 --recipe int4 -o out/reference-int4`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prunella.device_runtime.bundle import Bundle, open_bundle
from prunella.quantize.bundle_writer import requantize
from prunella.quantize.gguf_recipes import GGUF_RECIPES
from prunella.quantize.recipes import RECIPES


def quantize(bundle: str | Path, recipe: str, out: str | Path) -> Bundle:
    """Verify the float bundle at `bundle` and write it as `recipe` to `out`. Errors as those of `requantize`."""
    return requantize(open_bundle(bundle), recipe, out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella quantize`."""
    summaries = {name: recipe.summary for name, recipe in RECIPES.items()}
    summaries |= {name: recipe.summary for name, recipe in GGUF_RECIPES.items()}
    recipes = "; ".join(f"{name}: {summary}" for name, summary in summaries.items())
    parser.add_argument("bundle", type=Path, help="a float bundle")
    parser.add_argument("--recipe", required=True, help=recipes)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the new bundle")


def run(args: argparse.Namespace) -> None:
    """Entry of `prunella quantize`."""
    bundle = quantize(args.bundle, args.recipe, args.out)
    sys.stderr.write(f"{bundle.manifest.recipe}: {bundle.total_bytes / 1e6:.1f} MB\n")
    sys.stdout.write(f"{bundle.path}\n")
