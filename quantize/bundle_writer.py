"""From a float bundle to a quantised one, without the model it came from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from prunella.device_runtime.bundle import MANIFEST_NAME, Bundle, BundleManifest, FileEntry, open_bundle
from prunella.device_runtime.errors import BundleError
from prunella.device_runtime.files import sha256, whole_directory, write_text
from prunella.quantize.onnx_graphs import quantize_graphs
from prunella.quantize.recipes import find_recipe

TOKENIZER_NAME = "tokenizer.json"


def requantize(bundle: Bundle, recipe: str, out: str | Path) -> Bundle:
    """Write a float32 bundle again as another recipe says, whole or not at all.

    Raises:
        BundleError: the bundle is not float32: nothing could be gained from it.
        UsageError: no such recipe.
    """
    chosen = find_recipe(recipe)
    if bundle.manifest.recipe != "fp32":
        raise BundleError(
            f"{bundle.path} is {bundle.manifest.recipe}, which cannot be quantised again: "
            "start from a float bundle (`prunella export MODEL --target ... --recipe fp32 -o ...`)"
        )
    with whole_directory(out) as partial:
        quantize_graphs(bundle.path / "onnx", chosen, partial / "onnx")
        shutil.copyfile(bundle.file(TOKENIZER_NAME), partial / TOKENIZER_NAME)
        seal_bundle(replace(bundle.manifest, recipe=chosen.name), partial)
    return open_bundle(out, verify=False)


def seal_bundle(manifest: BundleManifest, folder: Path) -> BundleManifest:
    """Write `bundle.json` with the checksum and size of every file in `folder`. The last step of every writer."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(sha256(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    sealed = replace(manifest, files=files)
    write_text(folder / MANIFEST_NAME, sealed.dumps())
    return sealed
