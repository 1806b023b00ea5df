"""From a float bundle to a quantised one, without the model it came from."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prunella.device_runtime.base.errors import BundleError
from prunella.device_runtime.base.files import sha256, whole_directory, write_text
from prunella.device_runtime.base.outputs import check_output
from prunella.device_runtime.bundle import MANIFEST_NAME, Bundle, BundleManifest, FileEntry, open_bundle
from prunella.device_runtime.engines.gguf_engine import DECODER_PATTERN, MMPROJ_PATTERN, one_file
from prunella.device_runtime.engines.llama_library import llama_library
from prunella.quantize.bundle_recipe import BundleRecipe, find_bundle_recipe, in_blocks
from prunella.quantize.gguf_recipes import GgufRecipe
from prunella.quantize.onnx_drift import measure_drift
from prunella.quantize.onnx_graphs import quantize_audio_encoder, quantize_graphs
from prunella.quantize.onnx_weights import check_weights
from prunella.quantize.part_precision import with_precision
from prunella.quantize.recipes import FLOAT, INT4_BITS, INT8_PROJECTOR

TOKENIZER_NAME = "tokenizer.json"


def requantize(bundle: Bundle, recipe: str, out: str | Path, *, block_size: int | None = None) -> Bundle:
    """Write a float bundle again as another recipe says, whole or not at all.

    The new bundle has the engines that the recipe is for: `int4` drops a bundle's GGUF files, `int4+Q4_0` keeps both.
    Parts for which the bundle's target asks for a precision of its own have that one; `block_size` as in
    `bundle_recipe.in_blocks`.

    Raises:
        BundleError: the bundle is not float: nothing could be gained from it; or it has no files for the engine.
        UsageError: no such recipe, blocks that it cannot have, or an output that may not be replaced.
        ExportError: the quantised graphs say something else than their rounding explains (`onnx_drift`),
            or hold other weights (`onnx_weights`).
    """
    check_output(out, inputs=[bundle.path])
    chosen = find_bundle_recipe(recipe)
    manifest = bundle.manifest
    if not find_bundle_recipe(manifest.recipe).is_float:
        raise BundleError(
            f"{bundle.path} is {manifest.recipe}, which cannot be quantised again: "
            "start from a float bundle (`prunella export MODEL --target ... --recipe fp32 -o ...`)"
        )
    for engine in chosen.engines:
        if engine not in manifest.engines:
            raise BundleError(
                f"{bundle.path} has no {engine} files, which the recipe {chosen.name} is for "
                f"(it has {', '.join(manifest.engines)}): export the model again for a target with {engine}"
            )
    if chosen.gguf is not None:
        llama_library()  # tried now, not after the ONNX half
    chosen = in_blocks(with_precision(chosen, manifest.precision), block_size, manifest.provenance)
    with whole_directory(out) as partial:
        if chosen.onnx is not None:
            quantize_graphs(bundle.path / "onnx", chosen.onnx, partial / "onnx")
        elif chosen.gguf is not None:
            layers = chosen.gguf.audio_encoder
            projector = FLOAT if layers == FLOAT else INT8_PROJECTOR
            quantize_audio_encoder(bundle.path / "onnx", layers, projector, partial / "onnx")
        check_weights(bundle.path / "onnx", partial / "onnx")
        facts = manifest.provenance
        if chosen.onnx is not None and chosen.onnx.decoder.bits == INT4_BITS:
            facts = facts | {"block_size": chosen.onnx.decoder.block_size}
        if chosen.gguf is not None:
            facts = facts | {"gguf": quantize_gguf(bundle, chosen.gguf, partial / "gguf")}
        shutil.copyfile(bundle.file(TOKENIZER_NAME), partial / TOKENIZER_NAME)
        renamed = _renamed(manifest, chosen, facts)
        drift = measure_drift(bundle, partial, renamed, chosen)
        seal_bundle(replace(renamed, provenance=facts | {"onnx_drift": asdict(drift)}), partial)
    return open_bundle(out, verify=False)


def quantize_gguf(bundle: Bundle, recipe: GgufRecipe, out: Path) -> dict[str, Any]:
    """Write the `gguf/` files of a float bundle as `recipe` into folder `out`; what came of it, for the provenance."""
    from prunella.quantize.gguf_importance import IMPORTANCE_NAME, read_importance
    from prunella.quantize.gguf_quantizer import quantize_decoder
    from prunella.quantize.mmproj_storage import quantize_mmproj

    out.mkdir(parents=True)
    measured = f"gguf/{IMPORTANCE_NAME}"
    importance = None
    if measured in bundle.manifest.files:
        importance = read_importance(bundle.file(measured)).means()
    decoder = one_file(bundle, DECODER_PATTERN)
    report = quantize_decoder(decoder, out / f"decoder-{recipe.name}.gguf", recipe, importance=importance)
    spec = bundle.manifest.mmproj
    if spec is None or spec.projector:  # else llama.cpp has no audio half for this model
        quantize_mmproj(one_file(bundle, MMPROJ_PATTERN), out / f"mmproj-{recipe.mmproj}.gguf", recipe.mmproj)
    return asdict(report) | {"importance": importance is not None}


def _renamed(manifest: BundleManifest, recipe: BundleRecipe, facts: dict[str, Any]) -> BundleManifest:
    engines = tuple(engine for engine in manifest.engines if engine in recipe.engines)
    mmproj = manifest.mmproj if recipe.gguf is not None else None
    return replace(manifest, recipe=recipe.name, engines=engines, mmproj=mmproj, provenance=facts)


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
