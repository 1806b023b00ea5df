"""Passes on graphs of one matrix product or one lookup, against numpy."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunella.device_runtime.base.errors import UsageError
from prunella.quantize.blockwise import quantize_blocks
from prunella.quantize.bundle_recipe import find_bundle_recipe, in_blocks
from prunella.quantize.onnx_passes import quantize_embeddings, quantize_matmuls, store_half
from prunella.quantize.recipes import RECIPES, WeightFormat


def run(model, **inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def make_model(nodes, inputs, weights, width):
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "n", width])], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def weight():
    return np.random.default_rng(1).normal(0, 1, (160, 96)).astype(np.float32)


@pytest.fixture
def two_products(weight):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", 160])
    second = np.random.default_rng(2).normal(0, 1, (96, 96)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "layer/MatMul"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], "/lm_head/MatMul"),
    ]
    weights = [numpy_helper.from_array(weight, "w1"), numpy_helper.from_array(second, "w2")]
    return make_model(nodes, [x], weights, 96), weight @ second


@pytest.mark.parametrize(
    ("format_", "largest_error"),
    [
        (WeightFormat("blockwise", 8, 32, 4), 0.02),
        (WeightFormat("blockwise", 8, 128, 4), 0.02),
        (WeightFormat("blockwise", 4, 32, 4), 0.15),
        (WeightFormat("channelwise", 8), 0.03),
    ],
)
@pytest.mark.parametrize("rows", [1, 7])  # decode and prefill take different kernels
def test_a_product_stays_close(two_products, format_, largest_error, rows):
    model, product = two_products
    assert quantize_matmuls(model, format_, lambda node: True) == 2
    assert not {"w1", "w2"} & {tensor.name for tensor in model.graph.initializer}
    x = np.random.default_rng(rows).normal(0, 1, (1, rows, 160)).astype(np.float32)
    expected = x @ product
    error = np.linalg.norm(run(model, x=x) - expected) / np.linalg.norm(expected)
    assert 0 < error < largest_error


def test_only_what_was_chosen_changes(two_products):
    model, _ = two_products
    assert quantize_matmuls(model, RECIPES["int4"].decoder, lambda node: node.name == "/lm_head/MatMul") == 1
    assert [node.op_type for node in model.graph.node] == ["Cast", "MatMul", "MatMulNBits"]
    assert quantize_matmuls(model, WeightFormat("float"), lambda node: True) == 0


def test_int4_is_symmetric_level_4_in_blocks_of_32(two_products):
    model, _ = two_products
    quantize_matmuls(model, RECIPES["int4"].decoder, lambda node: True)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 2
    for node in products:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert len(node.input) == 3  # no zero points
        assert (attributes["bits"], attributes["block_size"], attributes["accuracy_level"]) == (4, 32, 4)


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 32), (8, 128)])
def test_blocks_are_laid_out_as_onnxruntimes_own_quantizer_does(weight, bits, block):
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    theirs = DefaultWeightOnlyQuantizer(
        DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=bits)
    )
    their_packed, their_scales, _ = theirs.qbits_block_quant(weight)
    packed, scales = quantize_blocks(weight, bits, block)
    assert packed.shape == their_packed.shape
    assert scales.shape == their_scales.shape

    def restored(packed, scales):
        integers = (
            packed
            if bits == 8
            else np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
        )
        rows = (integers.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
        return rows.reshape(len(rows), -1)[:, : len(weight)].T

    error, their_error = (
        np.square(restored(*pair) - weight).sum() for pair in ((packed, scales), (their_packed, their_scales))
    )
    if bits == 8:
        assert error == pytest.approx(their_error, rel=0.05)
    else:
        assert 0.5 * their_error < error < 0.95 * their_error


def test_a_channel_of_zeros_stays_zero(weight):
    weight[:, 5] = 0
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", 160])
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")], [x], [numpy_helper.from_array(weight, "w")], 96
    )
    quantize_matmuls(model, WeightFormat("channelwise", 8), lambda node: True)
    y = run(model, x=np.ones((1, 3, 160), np.float32))
    assert np.isfinite(y).all()
    assert (y[..., 5] == 0).all()


def test_embeddings_per_row():
    table = np.random.default_rng(0).normal(0, 1, (50, 24)).astype(np.float32)
    table[7] *= 100  # one large row costs the others nothing
    table[9] = 0
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])
    model = make_model(
        [helper.make_node("Gather", ["t", "input_ids"], ["y"], "g")],
        [ids],
        [numpy_helper.from_array(table, "t")],
        24,
    )
    quantize_embeddings(model, WeightFormat("channelwise", 8))
    assert [tensor.name for tensor in model.graph.initializer] == ["t_int8", "t_scale"]
    found = run(model, input_ids=np.arange(50)[None])[0]
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - table) <= steps * 0.501).all()


def test_halves_are_what_float16_says_of_them(weight):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", 160])
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")], [x], [numpy_helper.from_array(weight, "w")], 96
    )
    store_half(model)
    (stored,) = model.graph.initializer
    assert (stored.name, stored.data_type) == ("w_float16", TensorProto.FLOAT16)
    inputs = np.eye(160, dtype=np.float32)[None]
    assert np.array_equal(run(model, x=inputs)[0], weight.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("recipe", "block_size", "rounding", "expected"),
    [
        ("int4", None, None, 32),
        ("int4", None, 128, 128),
        ("int4", 64, 128, 64),
        ("int4-mixed", None, 128, 16),
        ("int4-mixed", 32, None, 32),
    ],
)
def test_blocks_are_those_that_the_model_was_healed_for(recipe, block_size, rounding, expected):
    stages = [{"stage": "transcript", "rounding": 32}, {"rounding": rounding}, {"stage": "average", "of": {}}]
    facts = {"healing": stages} if rounding else {}
    chosen = in_blocks(find_bundle_recipe(recipe), block_size, facts).onnx
    assert chosen.decoder.block_size == expected
    assert chosen.head == RECIPES[recipe].head


@pytest.mark.parametrize(("recipe", "block_size"), [("int4", 48), ("int4", 0), ("int8", 64), ("Q4_0", 64)])
def test_blocks_that_cannot_be(recipe, block_size):
    with pytest.raises(UsageError, match=f"no blocks of {block_size}|leave out --block-size"):
        in_blocks(find_bundle_recipe(recipe), block_size, {})


def test_recipes_are_found_by_name():
    assert find_bundle_recipe("int8").name == "int8"
    with pytest.raises(UsageError, match="no recipe 'int44': did you mean 'int4'"):
        find_bundle_recipe("int44")


def test_no_recipe_breaks_what_the_field_learned():
    for recipe in RECIPES.values():
        for part in (recipe.decoder, recipe.down_projection, recipe.head):
            assert part.method != "channelwise"  # one activation scale for attention sinks and words alike
            assert part.block_size < 512  # onnxruntime #28551: zeros
            assert part.method == "float" or part.accuracy_level == 4
