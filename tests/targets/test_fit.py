"""The cost model: shapes from configurations and from graphs, what it predicts of them, and what it is measured with."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunella.device_runtime.base.errors import TargetError, UsageError
from prunella.device_runtime.bundle import (
    AudioSpec,
    Bundle,
    BundleManifest,
    DecoderSpec,
    FileEntry,
    PromptSpec,
)
from prunella.quantize.recipes import RECIPES
from prunella.quantize.storage import kernels, storage_of
from prunella.targets import ceilings
from prunella.targets.bundle_shapes import bundle_shapes
from prunella.targets.calibrate import profile_text
from prunella.targets.check import check_target
from prunella.targets.compute import MANY_ROWS, Compute
from prunella.targets.fit import RUNTIME_MB, fit_bundle, predict
from prunella.targets.machine import Machine
from prunella.targets.onnx_wire import read_graph
from prunella.targets.profile import list_targets, load_target
from prunella.targets.shapes import known_models, read_shapes

COMPUTE = Compute(
    gb_per_s=10,
    rates={"float32": (5, 100), "int8_rows": (20, 200), "int8": (10, 100), "int4": (20, 100)},
    attention=(1, 50),
    elementwise=1,
    source="a test",
)


def test_shapes_of_every_known_model_have_its_size():
    billions = {
        "reference": 0.106 + 0.028,
        "reference-pruned": 0.074 + 0.028,
        "qwen3-asr-0.6b": 0.596,
        "qwen3-asr-1.7b": 1.72,
        "voxtral-mini-3b": 3.61,
        "granite-speech-2b": 2.53,
        "ultravox-1b": 1.24,
        "ultravox-8b": 7.50,
    }
    assert set(billions) == set(known_models())
    for name, size in billions.items():
        shapes = read_shapes(name)
        decoder = shapes.decoder
        weights = decoder.layers * decoder.layer_weights + decoder.vocabulary * decoder.hidden
        assert weights / 1e9 == pytest.approx(size, rel=0.02), name
        assert shapes.source and shapes.encoder.tokens_per_second > 0


def test_a_configuration_alone_is_enough(tmp_path):
    known = json.loads((Path(ceilings.__file__).parent / "shapes/qwen3-asr-0.6b.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(known["config"]))
    for named in (path, tmp_path):
        assert read_shapes(named).decoder == read_shapes("Qwen/Qwen3-ASR-0.6B-hf").decoder
    path.write_text('{"text_config": {"hidden_size": 3}}')
    with pytest.raises(UsageError, match="no configuration of a speech LLM"):
        read_shapes(path)
    with pytest.raises(UsageError, match="did you mean 'qwen3-asr-0"):
        read_shapes("qwen3-asr-0.6")
    with pytest.raises(UsageError, match="keep 1 to 28, not 29"):
        read_shapes("qwen3-asr-0.6b").kept(29)
    with pytest.raises(UsageError, match="151936 tokens"):
        read_shapes("qwen3-asr-0.6b").kept(28, 0)


def test_half_a_minute_is_heard_whole_unless_trimmed():
    whole, trimmed = read_shapes("voxtral-mini-3b"), read_shapes("voxtral-mini-3b@trimmed")
    assert whole.encoder.heard(3) == 30 and trimmed.encoder.heard(3) < 3.2
    storage = storage_of("int4")
    assert predict(whole, storage, COMPUTE).encode > 9 * predict(trimmed, storage, COMPUTE).encode


def test_less_of_a_model_takes_less():
    shapes = read_shapes("qwen3-asr-0.6b")
    full = predict(shapes, storage_of("int4"), COMPUTE)
    fewer = predict(shapes.kept(20), storage_of("int4"), COMPUTE)
    words = predict(shapes.kept(28, 40_000), storage_of("int4"), COMPUTE)
    wide = predict(shapes, storage_of("fp32"), COMPUTE)
    beams = predict(shapes, storage_of("int4"), COMPUTE, beams=4)
    for less in (fewer, words):
        assert less.step < full.step and less.weights_mb < full.weights_mb
    assert fewer.prefill < full.prefill and fewer.cache_mb < full.cache_mb
    assert wide.step > full.step and wide.memory_mb > full.memory_mb
    assert full.step < beams.step < 4 * full.step
    assert full.total == pytest.approx(full.first_token + full.tokens * full.step)
    assert full.real_time_factor == pytest.approx(full.total / 3)
    assert full.memory_mb == pytest.approx(full.weights_mb + full.cache_mb + full.activations_mb + RUNTIME_MB)


def test_a_token_reads_every_weight_and_no_faster_than_memory_allows():
    shapes, storage = read_shapes("ultravox-8b"), storage_of("fp32")
    decoder = shapes.decoder
    stored = 4 * (decoder.layers * decoder.layer_weights + decoder.vocabulary * decoder.hidden)
    quick = replace(COMPUTE, rates={"float32": (1e6, 1e6)}, attention=(1e6, 1e6), elementwise=1e6)
    assert predict(shapes, storage, quick).step == pytest.approx(stored / 10e9, rel=0.01)
    # Where arithmetic is the slower half, it is what counts.
    slow = replace(quick, rates={"float32": (1.0, 1.0)})
    assert predict(shapes, storage, slow).step == pytest.approx(2 * stored / 4 / 1e9, rel=0.01)


def test_rows_between_those_that_were_measured():
    at = [COMPUTE.product_seconds(1e6, 0, "float32", rows) for rows in (1, 2, MANY_ROWS, 2 * MANY_ROWS)]
    assert at[0] == pytest.approx(2e6 / 5e9) and at[2] == pytest.approx(2e6 * MANY_ROWS / 100e9)
    assert at[0] < at[1] < at[2] and at[3] == pytest.approx(2 * at[2])
    assert COMPUTE.rate("int4_128") == COMPUTE.rate("int4") and COMPUTE.rate("float16") == COMPUTE.rate(
        "float32"
    )


def test_every_recipe_is_known_by_its_own_bits():
    for name, recipe in RECIPES.items():
        storage = storage_of(name)
        assert (
            storage.gate_up.bits == recipe.decoder.bits and storage.gate_up.block == recipe.decoder.block_size
        )
    assert storage_of("Q4_K_M").gate_up.bits == pytest.approx(4.89)
    assert storage_of("int4", {"audio_encoder": "float"}).encoder.kernel == "float32"
    assert {"float32", "int8_rows"} <= set(kernels())
    with pytest.raises(UsageError, match="two engines"):
        storage_of("int4+Q4_0")
    # 100 weights in blocks of 32 are four blocks of 4 bits with a scale each.
    assert storage_of("int4").gate_up.stored(100, 2) == 2 * 4 * (32 * 4 + 32) / 8


@pytest.mark.parametrize("kernel", ["float32", "int8_rows", "int8_64", "int4_32"])
def test_graphs_of_kernels_run_and_are_read_back(kernel, tmp_path):
    one = ceilings.Kernel.parse(kernel)
    model = ceilings.product_graph(one, 96, 3)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((2, 96), np.float32)})[0].shape == (2, 96)
    path = tmp_path / "g.onnx"
    path.write_bytes(model)
    onnx.load(path)
    assert sum(node.op in ("MatMul", "MatMulInteger", "MatMulNBits") for node in read_graph(path).nodes) == 3
    path.write_bytes(model[: len(model) // 2])
    with pytest.raises(ValueError, match="no ONNX file"):
        read_graph(path)


def test_a_machine_is_measured_and_becomes_a_target(tmp_path, monkeypatch):
    monkeypatch.setattr(ceilings, "STREAMED", 1e6)
    monkeypatch.setattr(ceilings, "WIDTH", 128)
    monkeypatch.setattr(ceilings, "SECONDS", 0.0005)
    found = ceilings.measure_ceilings(1, ("float32", "int8_rows", "int4_32"), passes=1)
    assert found.known and found.gb_per_s > 0 and min(found.attention) > 0 and found.elementwise > 0
    assert "1 thread," in found.source
    path = tmp_path / "here.toml"
    path.write_text(profile_text(found, 1, base="x86-cpu", name="here"))
    target = load_target(path)
    assert target.compute.rates == found.rates and target.threads == 1
    path.write_text(path.read_text().replace("float32 =", "floot32 ="))
    with pytest.raises(TargetError, match=r"compute.rates.floot32' is no kernel"):
        load_target(path)
    better = ceilings.best_of(found, replace(found, gb_per_s=found.gb_per_s + 1, node_us=0))
    assert better.gb_per_s == found.gb_per_s + 1 and better.node_us == 0


def test_targets_say_where_their_constants_are_from():
    for name in list_targets():
        target = load_target(name)
        if target.compute.known:
            assert target.compute.source and target.latency.command_seconds > 0
            assert target.compute.gb_per_s <= target.bandwidth.gb_per_s or not target.bandwidth.gb_per_s
            for recipe in target.recipes:
                if "+" not in recipe:
                    assert predict(read_shapes("reference"), storage_of(recipe), target.compute).total > 0


def _graph(path, products, extra=()):
    nodes = [helper.make_node("MatMul", ["x", f"w{at}"], [f"y{at}"]) for at in range(len(products))]
    weights = [
        numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in [*((f"w{at}", shape) for at, shape in enumerate(products)), *extra]
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"])
    graph = helper.make_graph(nodes, "g", [value], [], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph), path)


@pytest.fixture
def bundle(tmp_path):
    layer = [(48, 48 + 32), (48, 48), (48, 96), (48, 96), (96, 48)]
    _graph(tmp_path / "onnx/decoder_model_merged.onnx", [*layer * 3, (48, 500)])
    encoder = [*[(16, 16)] * 4, (16, 64), (64, 16)] * 2
    _graph(tmp_path / "onnx/audio_encoder.onnx", [*encoder, (80, 40), (20, 48)])
    _graph(tmp_path / "onnx/embed_tokens.onnx", [])
    files = {
        f"onnx/{name}.onnx": FileEntry("", (tmp_path / f"onnx/{name}.onnx").stat().st_size)
        for name in ("decoder_model_merged", "audio_encoder", "embed_tokens")
    }
    manifest = BundleManifest(
        name="m",
        family="ultravox",
        target="raspberry-pi-5",
        engines=("onnx",),
        recipe="fp32",
        audio=AudioSpec(),
        prompt=PromptSpec.around_audio("", "", (), (7, 8), (2,)),
        decoder=DecoderSpec(3, 48, 1, 16, 500, max_context=2_048),
        files=files,
    )
    return Bundle(tmp_path, manifest)


def test_a_bundles_graphs_say_what_it_is(bundle):
    shapes, storage = bundle_shapes(bundle)
    decoder, encoder = shapes.decoder, shapes.encoder
    assert (decoder.layers, decoder.hidden, decoder.queries, decoder.keys) == (3, 48, 48, 16)
    assert (decoder.feed_forward, decoder.vocabulary) == (96, 500)
    assert (encoder.layers, encoder.width, encoder.feed_forward) == (2, 16, 64)
    assert encoder.projector == ((80, 40, 10.0), (20, 48, 10.0))
    assert shapes.prompt_tokens == 2 and storage.gate_up.kernel == "float32"


def test_a_bundle_against_the_budget(bundle):
    target = load_target("raspberry-pi-5")
    fit = fit_bundle(target, bundle)
    assert fit.fits and fit.prediction is not None and "first token after" in fit.describe()
    small = replace(target, memory=replace(target.memory, budget_mb=RUNTIME_MB))
    assert not fit_bundle(small, bundle).fits
    assert not check_target(small, Machine("aarch64", "Linux"), bundle)[-1].ok
    assert fit_bundle(replace(target, compute=Compute()), bundle).prediction is None


@pytest.mark.parametrize("kind", ["fun_asr_nano", "phi4_multimodal"])
def test_a_family_whose_encoder_is_not_predicted_is_refused(kind, tmp_path):
    parts = {"text_config": {"hidden_size": 8}, "audio_config": {"hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} | parts))
    with pytest.raises(UsageError, match=f"a {kind}, whose audio encoder.* cannot be predicted"):
        read_shapes(tmp_path)
