"""Write a bundle for one target: a folder with the model's ONNX graphs or GGUF files, its tokenizer, prompt and checksums.

`prunella export reference --target x86-cpu -o out/reference`
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from prunella._version import __version__
from prunella.device_runtime.base.common_options import add_output
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.extras import require
from prunella.device_runtime.base.files import scratch_directory, whole_directory, write_text
from prunella.device_runtime.base.outputs import check_output, check_space
from prunella.device_runtime.bundle import Bundle, BundleManifest, DecoderSpec, MmprojSpec, open_bundle
from prunella.device_runtime.engines.llama_library import llama_library
from prunella.evaluation.manifest import SpeechManifest, read_manifest
from prunella.export.audio_encoder import export_audio_encoder
from prunella.export.decoder import export_decoder
from prunella.export.embed_tokens import export_embed_tokens
from prunella.export.memory import check_export_memory
from prunella.export.onnx_families import check_onnx_decoder
from prunella.export.onnx_gate import gate_onnx
from prunella.export.stock_gate import gate_stock
from prunella.needs import recipe_modules
from prunella.pruning.calibration import speech_batches
from prunella.quantize.bundle_recipe import BundleRecipe, find_bundle_recipe, in_blocks
from prunella.quantize.bundle_writer import TOKENIZER_NAME, requantize, seal_bundle
from prunella.quantize.gguf_recipes import SUPER_BLOCK, default_gguf_recipe
from prunella.quantize.quantize import add_block_size
from prunella.speech_llm.checkpoint import save_decoder, saved_bytes
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM
from prunella.targets.fit import fit_bundle
from prunella.targets.profile import TargetProfile, load_target

_LOG = logging.getLogger(__name__)


def export(
    model: SpeechLLM | str | Path,
    target: TargetProfile | str,
    out: str | Path,
    *,
    recipe: str | None = None,
    provenance: dict[str, Any] | None = None,
    importance: SpeechManifest | None = None,
    block_size: int | None = None,
) -> Bundle:
    """Export a model for a target, whole or not at all.

    Args:
        model: in memory, or anything `speech_llm.load` takes.
        target: a profile, or the name or path of one.
        out: folder of the bundle; one that prunella made is replaced.
        recipe: how the weights are stored; the target's own when None.
        provenance: facts added to those of the model's config.
        importance: transcribed speech; what it excites is stored more exactly in GGUF files.
        block_size: inputs that share a scale in 4-bit layers on ONNX Runtime, see `bundle_recipe.in_blocks`.

    Raises:
        TargetError, UsageError: unknown target, a recipe or blocks that it does not take, or an output that may not be replaced.
        CheckpointError: the model cannot be loaded, or its decoder's family cannot be exported.
        EngineError: a library that the recipe needs is not installed, or cannot be loaded.
    """
    check_output(out, inputs=[] if isinstance(model, SpeechLLM) else [model])
    out = Path(out)
    profile = target if isinstance(target, TargetProfile) else load_target(target)
    if recipe is not None:
        _check_recipe(profile, recipe)  # before minutes of loading
    _check_libraries(recipe or profile.recipe)
    check_export_memory(model, find_bundle_recipe(recipe or profile.recipe))
    speech_llm = model if isinstance(model, SpeechLLM) else load(model)
    chosen = find_bundle_recipe(recipe or default_recipe(speech_llm.decoder.config, profile))
    _check_recipe(profile, chosen.name)
    in_blocks(chosen, block_size, speech_llm.config.provenance)
    if chosen.is_float:
        return export_float(
            speech_llm, profile, out, provenance=provenance, recipe=chosen.name, importance=importance
        )
    with scratch_directory(out, "float") as work:
        bundle = export_float(
            speech_llm,
            profile,
            work / "float",
            provenance=provenance,
            recipe=float_recipe(chosen.engines),
            importance=importance,
        )
        return requantize(bundle, chosen.name, out, block_size=block_size)


def export_float(
    model: SpeechLLM | str | Path,
    target: TargetProfile | str,
    out: str | Path,
    *,
    provenance: dict[str, Any] | None = None,
    recipe: str | None = None,
    importance: SpeechManifest | None = None,
) -> Bundle:
    """The float bundle that `quantize.bundle_writer.requantize` makes all others from.

    Args:
        recipe: one of the float recipes, for example "fp32", "F16" or "fp32+BF16"; by default for the
            engines of the target's own recipe.
        importance: see `export`; kept in the bundle for `requantize`.

    Raises as `export`, and ExportError when ONNX Runtime or llama.cpp do not say of the files what PyTorch says of the model, or
    the model's stock class something else.
    """
    check_output(out, inputs=[] if isinstance(model, SpeechLLM) else [model])
    out = Path(out)
    profile = target if isinstance(target, TargetProfile) else load_target(target)
    chosen = find_bundle_recipe(recipe or float_recipe(find_bundle_recipe(profile.recipe).engines))
    if not chosen.is_float:
        raise UsageError(
            f"'{chosen.name}' is not a float recipe: give fp32, F16, BF16, F32, or fp32 and one of those"
        )
    _check_libraries(chosen.name)
    speech_llm = model if isinstance(model, SpeechLLM) else load(model)
    check_decoder(speech_llm.decoder.config, chosen.name, profile.max_context)
    share = (chosen.onnx is not None) + (chosen.gguf is not None) / 2  # of float32
    check_space(out, share * saved_bytes(speech_llm.decoder))
    facts = dict(provenance or {})
    stock = gate_stock(speech_llm)  # before the graphs are written
    if stock is not None:
        facts["stock_gate"] = asdict(stock)
    mmproj: MmprojSpec | None = None
    with whole_directory(out) as partial:
        if chosen.onnx is not None:
            export_float_graphs(speech_llm, partial / "onnx", max_context=profile.max_context)
        else:
            (partial / "onnx").mkdir()
            export_audio_encoder(speech_llm, partial / "onnx")
        if chosen.gguf is not None:
            from prunella.export.gguf_folder import export_gguf_files  # brings in llama.cpp, an extra

            report, mmproj = export_gguf_files(
                speech_llm, partial / "gguf", chosen.gguf, max_context=profile.max_context
            )
            facts["gguf_gate"] = asdict(report)
            if importance is not None:
                from prunella.export.importance import export_importance

                batches = speech_batches(speech_llm, importance.utterances)
                facts["importance_positions"] = export_importance(speech_llm, batches, partial / "gguf")
        write_text(partial / TOKENIZER_NAME, speech_llm.tokenizer.backend_tokenizer.to_str())
        manifest = replace(_manifest(speech_llm, profile, facts, chosen), mmproj=mmproj)
        gate = asdict(gate_onnx(speech_llm, partial, manifest))
        seal_bundle(replace(manifest, provenance=manifest.provenance | {"onnx_gate": gate}), partial)
    return open_bundle(out, verify=False)


def export_float_graphs(model: SpeechLLM, out: Path, *, max_context: int = 2_048) -> None:
    """Write `audio_encoder.onnx`, `embed_tokens.onnx` and `decoder_model_merged.onnx` (+ `_data`), all float32.

    Raises:
        CheckpointError: a decoder that cannot be exported.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".decoder-", dir=out) as work:
        decoder = Path(work) / "decoder"
        save_decoder(model.decoder, model.tokenizer, decoder)
        export_decoder(decoder, out, max_context=max_context)
    export_audio_encoder(model, out)
    export_embed_tokens(model, out)


def check_decoder(decoder: PretrainedConfig, recipe: str, max_context: int) -> None:
    """Refuse a decoder that an engine of the recipe does not run, or would run wrongly, by its configuration alone.

    Raises:
        CheckpointError: says why, and what there is instead.
        UsageError: there is no such recipe.
    """
    engines = find_bundle_recipe(recipe).engines
    if "onnx" in engines:
        check_onnx_decoder(decoder, max_context)
    if "gguf" in engines:
        from prunella.export.gguf_families import find_family

        find_family(decoder, max_context)


def default_recipe(decoder: PretrainedConfig, profile: TargetProfile) -> str:
    """The target's recipe; Q4_0 instead of Q4_K_M where most of the decoder's tensors would fall back to 5 bits."""
    text = decoder.get_text_config()
    parts = profile.recipe.split("+")
    fitting = default_gguf_recipe(text.hidden_size, text.intermediate_size)
    followed = "+".join(fitting if part == "Q4_K_M" else part for part in parts)
    if followed == profile.recipe or followed not in profile.recipes:
        return profile.recipe
    _LOG.warning(
        "%s, the recipe of %s, becomes %s: rows of %d and %d weights are no multiples of %d, and most of them would take 5 bits",
        profile.recipe, profile.name, followed, text.hidden_size, text.intermediate_size, SUPER_BLOCK,
    )  # fmt: skip
    return followed


def float_recipe(engines: tuple[str, ...]) -> str:
    """The recipe that others for these engines are made from."""
    return "+".join(name for engine, name in (("onnx", "fp32"), ("gguf", "F16")) if engine in engines)


def _check_libraries(recipe: str) -> None:
    require(recipe_modules(recipe), f"exporting as {recipe}")
    if "gguf" in find_bundle_recipe(recipe).engines:
        llama_library()  # tried now, not after minutes


def _check_recipe(profile: TargetProfile, recipe: str) -> None:
    chosen = find_bundle_recipe(recipe)
    if chosen.name not in profile.recipes:
        raise UsageError(
            f"target '{profile.name}' does not take the recipe '{chosen.name}': "
            f"choose one of {', '.join(profile.recipes)}"
        )


def _manifest(
    model: SpeechLLM, profile: TargetProfile, provenance: dict[str, Any], recipe: BundleRecipe
) -> BundleManifest:
    text = model.decoder.config.get_text_config()
    heads = text.num_attention_heads
    facts = {**model.config.provenance, **provenance}
    return BundleManifest(
        name=str(facts.get("name") or facts.get("base_model") or model.config.family),
        family=model.config.family,
        target=profile.name,
        engines=tuple(engine for engine in profile.engines if engine in recipe.engines),
        recipe=recipe.name,
        audio=model.config.audio,
        prompt=model.prompt,
        decoder=DecoderSpec(
            num_layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocab_size=text.vocab_size,
            max_context=min(profile.max_context, text.max_position_embeddings),
        ),
        decode=model.config.decode,
        threads=profile.threads,
        providers=profile.onnx_providers(),
        buckets=profile.buckets,
        llama=dict(profile.llama),
        precision=profile.precision.overrides(),
        provenance=facts,
        created_by=f"prunella {__version__}",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella export`."""
    parser.add_argument("model", help="'reference', a checkpoint folder, or a Hugging Face id")
    parser.add_argument("--target", required=True, help="a name of `prunella targets list`, or a .toml")
    parser.add_argument("--recipe", help="for example fp32, int4, Q4_K_M (default: the target's)")
    parser.add_argument(
        "--importance",
        type=Path,
        metavar="MANIFEST",
        help="transcribed speech for an importance matrix: GGUF files of few bits lose less",
    )
    add_block_size(parser)
    add_output(parser, "folder of the bundle")


def run(args: argparse.Namespace) -> None:
    """Entry of `prunella export`."""
    check_output(args.out, inputs=[args.model, args.importance])
    importance = read_manifest(args.importance) if args.importance else None
    bundle = export(
        args.model,
        args.target,
        args.out,
        recipe=args.recipe,
        importance=importance,
        block_size=args.block_size,
    )
    megabytes = bundle.total_bytes / 1e6
    fit = fit_bundle(load_target(args.target), bundle)
    if not fit.fits:
        sys.stderr.write(f"warning: too large for {bundle.manifest.target}: {fit.describe()}\n")
    sys.stderr.write(f"{bundle.manifest.recipe} bundle for {bundle.manifest.target}: {megabytes:.1f} MB\n")
    sys.stdout.write(f"{bundle.path}\n")
