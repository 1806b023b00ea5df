"""Graphs with their weights beside them."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunella.device_runtime.base.errors import BundleError
from prunella.quantize.graph_file import load_graph

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
