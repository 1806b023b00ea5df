"""One stored matrix for the head and the token embeddings."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunella.quantize.graph_file import save_graph
from prunella.quantize.onnx_passes import quantize_matmuls
from prunella.quantize.onnx_weights import check_weights
from prunella.quantize.recipes import WeightFormat
from prunella.quantize.tied_embeddings import LOOKUP, look_up_in_head, tied_factor

VOCAB, HIDDEN = 300, 72


def graphs(table, head):
    """Float graphs of a decoder that is nothing but its head, and of embeddings."""
    x = helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, [1, "n", HIDDEN])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", VOCAB])
    product = helper.make_node("MatMul", ["inputs_embeds", "head"], ["logits"], "/lm_head/MatMul")
    weights = [numpy_helper.from_array(np.ascontiguousarray(head.T), "head")]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])
    gather = helper.make_node("Gather", ["table", "input_ids"], ["inputs_embeds"], LOOKUP)
    opset = [helper.make_opsetid("", 20)]
    return [
        helper.make_model(graph, opset_imports=opset, ir_version=10)
        for graph in (
            helper.make_graph([product], "decoder", [x], [y], weights),
            helper.make_graph(
                [gather], "embed_tokens", [ids], [x], [numpy_helper.from_array(table, "table")]
            ),
        )
    ]


@pytest.fixture
def rows():
    return np.random.default_rng(3).normal(size=(VOCAB, HIDDEN)).astype(np.float32)


def run(path, **inputs):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)[0]


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (8, 64)])
@pytest.mark.parametrize("factor", [1.0, 24.0])
def test_the_lookup_gives_the_heads_own_rows(rows, bits, block, factor, tmp_path):
    decoder, embeddings = graphs(rows * np.float32(factor), rows)
    source, out = tmp_path / "float", tmp_path / "small"
    for name, graph in (("decoder_model_merged.onnx", decoder), ("embed_tokens.onnx", embeddings)):
        copied = onnx.ModelProto()
        copied.CopyFrom(graph)
        save_graph(copied, source / name)
    found = tied_factor(decoder, embeddings)
    assert found == pytest.approx(factor)
    quantize_matmuls(decoder, WeightFormat("blockwise", bits, block, 4), lambda node: True)
    save_graph(decoder, out / "decoder_model_merged.onnx")
    save_graph(look_up_in_head(decoder, embeddings, found), out / "embed_tokens.onnx")
    # Nothing of its own: a range of the decoder's file.
    assert sorted(path.name for path in out.iterdir()) == [
        "decoder_model_merged.onnx",
        "decoder_model_merged.onnx_data",
        "embed_tokens.onnx",
    ]
    assert (out / "embed_tokens.onnx").stat().st_size < 2_000
    head = run(out / "decoder_model_merged.onnx", inputs_embeds=np.eye(HIDDEN, dtype=np.float32)[None])[0].T
    table = run(out / "embed_tokens.onnx", input_ids=np.arange(VOCAB)[None])[0]
    assert np.allclose(
        table, head * factor, atol=2e-3 * np.abs(table).max(), rtol=0
    )  # activations have 8 bits
    assert 0 < np.abs(table - rows * factor).max() < 0.3 * factor * np.abs(rows).max()
    check_weights(source, out)


@pytest.mark.parametrize("wrong", ["other", "shape", "nan"])
def test_what_is_not_tied_stays_two(rows, wrong):
    table = {"other": rows + 1e-3, "shape": rows[:-1], "nan": rows * np.float32(np.nan)}[wrong]
    assert tied_factor(*graphs(table, rows)) is None


def test_a_float_head_has_no_integers(rows, tmp_path):
    decoder, embeddings = graphs(rows, rows)
    save_graph(decoder, tmp_path / "decoder_model_merged.onnx")
    assert look_up_in_head(decoder, embeddings, 1.0) is None
