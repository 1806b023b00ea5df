"""A recipe applied to the three float graphs of a speech LLM."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx

from prunella.device_runtime.base.errors import BundleError, ExportError
from prunella.quantize.graph_file import load_graph, save_graph
from prunella.quantize.onnx_passes import (
    ATTENTION,
    DOWN_PROJECTION,
    HEAD,
    quantize_embeddings,
    quantize_matmuls,
    store_half,
)
from prunella.quantize.recipes import Recipe, WeightFormat
from prunella.quantize.tied_embeddings import look_up_in_head, tied_factor

GRAPHS = ("audio_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx")
# Which part of a `Recipe` a matrix of the decoder is, by its node's name: the first that matches.
_DECODER_PARTS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda name: name == HEAD, "head"),
    (lambda name: name.endswith(DOWN_PROJECTION), "down_projection"),
    (lambda name: ATTENTION in name, "attention"),
    (lambda name: True, "decoder"),
)
# Of any family's audio half: matrices of what is there many times, which has a number. Convolutions, what joins them to the
# layers, and the projector are there once.
_ENCODER_LAYERS = re.compile(r"audio_encoder\.(.*\.)?\d+\.|ctc_head\.")
_PROJECTOR = "projector."


def quantize_graphs(source: Path, recipe: Recipe, out: Path) -> None:
    """Write the graphs of folder `source` (float32) to folder `out` as `recipe` says.

    What a recipe leaves as it is is copied.

    Raises:
        BundleError: a graph is missing.
        ExportError: an audio encoder whose layers are not known by their names.
    """
    for name in GRAPHS:
        if not (source / name).is_file():
            raise BundleError(f"{source} holds no {name}: export the model again with `--recipe fp32`")
    out.mkdir(parents=True, exist_ok=True)
    audio_encoder, embed_tokens, decoder = GRAPHS
    lookup = None
    if _is_float(recipe, decoder):
        _copy(source, decoder, out)
    else:
        model = load_graph(source / decoder)
        embeddings = load_graph(source / embed_tokens)
        factor = tied_factor(model, embeddings) if recipe.tied else None
        for _, part in _DECODER_PARTS:
            quantize_matmuls(model, getattr(recipe, part), partial(_is_part, part))
        save_graph(model, out / decoder)
        if factor is not None:
            lookup = look_up_in_head(model, embeddings, factor)
    if lookup is not None:
        save_graph(lookup, out / embed_tokens)
    elif _is_float(recipe, embed_tokens):
        _copy(source, embed_tokens, out)
    else:
        model = load_graph(source / embed_tokens)
        quantize_embeddings(model, recipe.embed_tokens)
        save_graph(model, out / embed_tokens)
    if _is_float(recipe, audio_encoder):
        _copy(source, audio_encoder, out)
    else:
        quantize_audio_encoder(source, recipe.audio_encoder, recipe.projector, out)


def quantize_audio_encoder(source: Path, layers: WeightFormat, projector: WeightFormat, out: Path) -> None:
    """The first of the graphs: matrices of the encoder's layers and of the projector, other constants as float16.

    Raises:
        BundleError: it is missing.
        ExportError: as `quantize_graphs`.
    """
    name = GRAPHS[0]
    if not (source / name).is_file():
        raise BundleError(f"{source} holds no {name}: export the model again")
    out.mkdir(parents=True, exist_ok=True)
    model = load_graph(source / name)
    _quantize_layers(model, layers)
    quantize_matmuls(model, projector, lambda node: node.name.startswith(_PROJECTOR))
    if layers.method != "float":
        store_half(model)
    save_graph(model, out / name)


def _copy(source: Path, name: str, out: Path) -> None:
    for file in sorted(source.glob(f"{name}*")):
        shutil.copyfile(file, out / file.name)


def _quantize_layers(model: onnx.ModelProto, weights: WeightFormat) -> None:
    changed = quantize_matmuls(model, weights, lambda node: _ENCODER_LAYERS.match(node.name) is not None)
    if weights.method != "float" and not changed:
        raise ExportError(
            "no matrix of the audio encoder's layers was found by its name, so none would be quantised: "
            "this is a fault of prunella, report the model"
        )


def _is_part(part: str, node: onnx.NodeProto) -> bool:
    return part == next(name for matches, name in _DECODER_PARTS if matches(node.name))


def _is_float(recipe: Recipe, name: str) -> bool:
    formats = {
        "decoder_model_merged.onnx": [getattr(recipe, part) for _, part in _DECODER_PARTS],
        "audio_encoder.onnx": [recipe.audio_encoder, recipe.projector],
        "embed_tokens.onnx": [recipe.embed_tokens],
    }[name]
    return all(format_.method == "float" for format_ in formats)
