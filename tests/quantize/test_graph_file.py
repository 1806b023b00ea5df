"""Graphs with their weights beside them."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunella.device_runtime.base.errors import BundleError
from prunella.quantize.graph_file import load_graph, save_graph

WEIGHTS = np.arange(4_096, dtype=np.float32)


@pytest.fixture
def graph(tmp_path):
    tensor = numpy_helper.from_array(WEIGHTS, "weights")
    node = helper.make_node("Identity", ["weights"], ["out"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [4_096])
    model = helper.make_model(helper.make_graph([node], "one", [], [out], [tensor]))
    path = tmp_path / "one.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="one.onnx_data")
    return path


def test_weights_with_hard_links_are_read(graph):
    """As `cp -al`, backups and deduplication leave them."""
    os.link(graph.with_name("one.onnx_data"), graph.with_name("backup"))
    (tensor,) = load_graph(graph).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), WEIGHTS)


def test_weights_that_are_cut_short_are_named(graph):
    data = graph.with_name("one.onnx_data")
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(BundleError, match=r"one\.onnx_data is cut short"):
        load_graph(graph)


def test_what_is_written_is_read(tmp_path):
    """Weights beside the graph, each from the beginning of a cache line; small ones within."""
    tensors = [
        numpy_helper.from_array(WEIGHTS[:count].astype(kind), f"w{count}")
        for count, kind in ((1_025, np.int8), (4_000, np.float32), (3, np.float32))
    ]
    nodes = [
        helper.make_node("Identity", [tensor.name], [f"{tensor.name}_out"], tensor.name) for tensor in tensors
    ]
    outs = [
        helper.make_tensor_value_info(f"{one.name}_out", one.data_type, list(one.dims)) for one in tensors
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "three", [], outs, tensors),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    expected = [numpy_helper.to_array(tensor) for tensor in tensors]
    path = save_graph(model, tmp_path / "new" / "three.onnx")
    assert sorted(file.name for file in path.parent.iterdir()) == ["three.onnx", "three.onnx_data"]
    assert path.with_name("three.onnx_data").stat().st_size == 1_088 + 16_000
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for found, read, right in zip(
        session.run(None, {}), load_graph(path).graph.initializer, expected, strict=True
    ):
        assert np.array_equal(found, right) and np.array_equal(numpy_helper.to_array(read), right)
