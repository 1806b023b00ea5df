"""A target's precision for single parts, over what a recipe says."""

import pytest

from prunella.device_runtime.base.errors import UsageError
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.quantize.part_precision import with_precision


def test_only_the_named_parts_change():
    recipe = find_bundle_recipe("int4+Q4_0")
    changed = with_precision(recipe, {"audio_encoder": "float", "head": "int8"})
    assert changed.name == recipe.name
    assert changed.onnx.audio_encoder.method == "float"
    assert changed.onnx.head.bits == 8
    assert changed.onnx.decoder == recipe.onnx.decoder
    assert changed.onnx.embed_tokens == recipe.onnx.embed_tokens
    assert changed.gguf.audio_encoder.method == "float"
    assert changed.gguf.mmproj == recipe.gguf.mmproj
    assert changed.onnx.projector.method == "float"  # which runs where the encoder does
    assert changed.onnx.tied
    assert not with_precision(recipe, {"embed_tokens": "float"}).onnx.tied
    assert with_precision(recipe, {}) == recipe


def test_float_recipes_stay_float():
    recipe = find_bundle_recipe("fp32+F16")
    assert with_precision(recipe, {"audio_encoder": "int8", "embed_tokens": "int8"}) == recipe


@pytest.mark.parametrize("precision", [{"audio_encoder": "int3"}, {"decoder": "int8"}])
def test_what_does_not_exist(precision):
    with pytest.raises(UsageError, match="does not exist: a target may say audio_encoder: float or int8"):
        with_precision(find_bundle_recipe("int4"), precision)
