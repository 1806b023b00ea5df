"""Recipes on every family's graphs: which matrices are stored in integers, by their names, and that they are read back."""

from __future__ import annotations

import re

import onnx
import pytest
import torch
from tiny_families import FAMILY_NAMES, write_tiny
from torch import nn

from prunella.device_runtime.base.errors import ExportError
from prunella.export.export import export_float
from prunella.quantize import onnx_graphs
from prunella.quantize.bundle_writer import requantize
from prunella.quantize.graph_file import load_graph
from prunella.quantize.onnx_weights import check_weights
from prunella.quantize.recipes import INT8_PROJECTOR, INT8_ROWS, RECIPES
from prunella.speech_llm import load
from prunella.speech_llm.families.conformer import ConformerEncoder
from prunella.targets.profile import load_target

pytestmark = pytest.mark.slow

# With larger weights, attention of a random decoder looks at single positions, and any rounding says something else.
TEXT = {"initializer_range": 0.1}
STORED = {"MatMulInteger": "channelwise", "MatMulNBits": "blockwise", "MatMul": "float"}
KINDS = {
    "attention": r"/model/layers\.\d+/attn/(qkv_proj|[qkvo]_proj)/MatMul",
    "down_projection": r"/model/layers\.\d+/mlp/down_proj/MatMul",
    "decoder": r"/model/layers\.\d+/mlp/(gate|up)_proj/MatMul",
    "head": r"/lm_head/MatMul",
}


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request, tmp_path_factory):
    """A model and its float bundle."""
    folder = tmp_path_factory.mktemp("recipes")
    model = load(write_tiny(request.param, folder / "model", text=TEXT))
    return model, export_float(model, load_target("x86-cpu"), folder / "fp32")


def matrices(path) -> dict[str, tuple[str, int]]:
    """Node → (method, bits) of every product with a constant matrix."""
    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {
        node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in constants
    }
    found = {}
    for node in graph.node:
        if node.op_type in STORED and node.input[1] in constants:
            bits = {entry.name: entry.i for entry in node.attribute}.get("bits")
            found[node.name] = (
                STORED[node.op_type],
                bits or (8 if node.op_type == "MatMulInteger" else 32),
            )
        # Of another kind no pass would know that it is a matrix.
        assert node.op_type != "Gemm", node.name
    return found


def linears(model) -> tuple[set[str], set[str]]:
    """Names of the audio half's matrices: those of its layers, and the others."""
    layers, others = set(), set()
    for part in ("audio_encoder", "projector"):
        for name, module in getattr(model, part).named_modules():
            if isinstance(module, nn.Linear):
                layered = part == "audio_encoder" and any(piece.isdigit() for piece in name.split("."))
                (layers if layered else others).add(f"{part}.{name}/MatMul")
    return layers, others


@pytest.mark.parametrize("recipe", ["int8", "int4", "int4-mixed"])
def test_the_right_matrices_are_stored_in_integers(recipe, family, tmp_path):
    model, source = family
    bundle = requantize(source, recipe, tmp_path / recipe)
    layers, others = linears(model)
    assert len(layers) >= 12 and others
    expected = dict.fromkeys(layers, ("channelwise", 8)) | {
        name: ("blockwise", RECIPES[recipe].projector.bits)
        if name.startswith("projector.")
        else ("float", 32)
        for name in others
    }
    found = matrices(bundle.file("onnx/audio_encoder.onnx"))
    if isinstance(model.audio_encoder, ConformerEncoder):  # each layer has a table of distances, of no module
        tables = {name for name in found if re.fullmatch(r"audio_encoder/MatMul(_\d+)?", name)}
        assert len(tables) == len(model.audio_encoder.tower.layers)
        expected |= dict.fromkeys(tables, ("float", 32))
    assert found == expected
    decoder = matrices(bundle.file("onnx/decoder_model_merged.onnx"))
    parts = {
        name: next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)) for name in decoder
    }
    assert decoder == {
        name: (getattr(RECIPES[recipe], part).method, getattr(RECIPES[recipe], part).bits)
        for name, part in parts.items()
    }
    counts = [list(parts.values()).count(kind) for kind in KINDS]
    assert counts[1:] == [6, 12, 1] and counts[0] in (12, 24)  # query, key and value are one matrix or three
    table = onnx.load(str(bundle.file("onnx/embed_tokens.onnx")), load_external_data=False).graph
    head, factor = model.view.head.weight, model.view.lookup_scale
    tied = torch.equal(head * factor, model.view.embeddings.weight * factor)
    kinds = [node.op_type for node in table.node]
    assert kinds[0] == ("GatherBlockQuantized" if tied else "Gather")
    assert ("Mul" in kinds) == (not tied or factor != 1)
    drift = bundle.manifest.provenance["onnx_drift"]
    assert 0 < drift["embeddings"] < 0.2 and 0 < drift["logits"] < RECIPES[recipe].drift


def test_a_layer_that_lost_a_matrix_is_seen(family, tmp_path):
    _, source = family
    out = tmp_path / "onnx"
    onnx_graphs.quantize_audio_encoder(source.path / "onnx", INT8_ROWS, INT8_PROJECTOR, out)
    check_weights(source.path / "onnx", out)
    graph = load_graph(out / "audio_encoder.onnx")
    scales = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("_scale"))
    scales.raw_data = bytes(len(scales.raw_data))
    onnx.save(graph, str(out / "audio_encoder.onnx"))
    with pytest.raises(ExportError, match=r"\.\d+\..*/MatMul is 1 of its size away"):
        check_weights(source.path / "onnx", out)


def test_an_encoder_of_unknown_names_is_no_quantised_bundle(family, tmp_path, monkeypatch):
    _, source = family
    monkeypatch.setattr(onnx_graphs, "_ENCODER_LAYERS", re.compile("none"))
    with pytest.raises(ExportError, match="no matrix of the audio encoder's layers"):
        requantize(source, "int8", tmp_path / "int8")
