"""The gate notices graphs that run and say something else than their model, before anyone gets the bundle."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from prunella.device_runtime.base.errors import ExportError
from prunella.export import export as export_module
from prunella.export.export import export_float
from prunella.export.onnx_gate import FLOAT_ERROR, compare, gate_onnx, near_ties
from prunella.quantize import onnx_probe
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.quantize.free_memory import free_memory, whole_memory
from prunella.quantize.onnx_drift import check_drift, measure_drift
from prunella.quantize.onnx_weights import check_weights

pytestmark = pytest.mark.slow


@pytest.fixture
def changed(float_bundle, tmp_path):
    """Change one tensor of a copy of the float bundle: function of (graph, name, change) → its folder."""

    def change(graph, name, change):
        folder = tmp_path / "changed"
        shutil.copytree(float_bundle.path, folder)
        path = folder / "onnx" / graph
        model = onnx.load(str(path))
        (tensor,) = (one for one in model.graph.initializer if one.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
        for beside in folder.glob("onnx/decoder*_data"):
            if graph.startswith("decoder"):
                beside.unlink()
        onnx.save(model, str(path))
        return folder

    return change


@pytest.mark.step("ONNX gate", family="ultravox")
def test_a_sound_bundle_says_what_was_compared(float_bundle, bundles):
    found = float_bundle.manifest.provenance["onnx_gate"]
    assert 0 < found["logit_error"] < FLOAT_ERROR and 0 < found["embedding_error"] < FLOAT_ERROR
    assert found["near_ties"] == [] and found["not_compared"] is None
    for recipe, logits in (("int8", 0.2), ("int4", 1.0)):
        drift = bundles[recipe].manifest.provenance["onnx_drift"]
        assert FLOAT_ERROR < drift["logits"] < logits and FLOAT_ERROR < drift["embeddings"] < 0.2
        assert 0 < drift["equal_tokens"] <= 32


@pytest.mark.parametrize(
    ("graph", "tensor", "change", "message"),
    [
        ("embed_tokens.onnx", "embed_tokens.weight", lambda table: 1.05 * table, "logits are up to"),
        ("audio_encoder.onnx", "audio_encoder.conv1.weight", np.flip, "audio embeddings are up to"),
        ("decoder_model_merged.onnx", "cos_cache", np.ones_like, "logits are up to"),
    ],
)
def test_what_runs_and_is_wrong_fails(graph, tensor, change, message, changed, tiny_model, float_bundle):
    with pytest.raises(ExportError, match=message):
        gate_onnx(tiny_model, changed(graph, tensor, change), float_bundle.manifest)


def test_a_graph_that_does_not_load_fails_and_leaves_no_bundle(tiny_model, tmp_path, monkeypatch):
    original = export_module.export_embed_tokens

    def cut(model, out):
        path = original(model, out)
        path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr(export_module, "export_embed_tokens", cut)
    with pytest.raises(ExportError, match=r"cannot run the graphs .*embed_tokens\.onnx"):
        export_float(tiny_model, "x86-cpu", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_child_is_told_from_a_wrong_graph(float_bundle, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(onnx_probe.sys, "executable", str(program))
    with pytest.raises(ExportError, match="killed, most likely for want of memory"):
        onnx_probe.probe_graphs(float_bundle.path, float_bundle.manifest)


def test_what_is_too_large_is_said_and_noted(tiny_model, float_bundle, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(onnx_probe, "free_memory", lambda: 1_000)
    with caplog.at_level(logging.WARNING):
        report = gate_onnx(tiny_model, float_bundle.path, float_bundle.manifest)
        drift = measure_drift(
            float_bundle, float_bundle.path, float_bundle.manifest, find_bundle_recipe("int4")
        )
    assert report.logit_error is drift.logits is None
    assert "0.0 GB are free" in report.not_compared == drift.not_compared
    assert "the bundle was NOT compared with PyTorch: their graphs need about" in caplog.text
    assert "int4 was NOT compared with its float bundle" in caplog.text


def test_near_ties_are_shown(caplog):
    logits = np.zeros((3, 5), np.float32)
    logits[:, 0] = [2, 1, 3]
    logits[1, 4] = 1 + 1e-5
    with caplog.at_level(logging.WARNING):
        (tie,) = near_ties(logits, (0, 0, 0))
    assert tie.startswith("token 1: 0 for PyTorch's 4") and tie in caplog.text


def test_quantised_graphs_beyond_their_recipe_fail(bundles, float_bundle):
    said = bundles["int4"].manifest
    with pytest.raises(ExportError, match=r"as int8, the model's logits are 0\.\d+ standard deviations"):
        measure_drift(float_bundle, bundles["int4"].path, said, find_bundle_recipe("int8"))


def test_without_a_number_nothing_passes(monkeypatch):
    with pytest.raises(ExportError, match="nan standard deviations"):
        check_drift(float("nan"), 1.0, "logits", "int8")
    with pytest.raises(ExportError, match="nan standard deviations"):
        compare(np.ones(2, np.float32), np.array([1, np.nan], np.float32), "logits")


def test_free_memory_is_that_of_the_container(tmp_path):
    machine = free_memory(tmp_path)
    assert machine > 0
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box/inner\n")
    group = tmp_path / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("600\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 1_000_000
    (group / "memory.max").write_text("1000\n")
    assert free_memory(tmp_path) == 400
    (group / "memory.stat").write_text("anon 200\ninactive_file 300\nactive_file 100\n")  # read files
    assert free_memory(tmp_path) == 700
    assert 1000 <= whole_memory(tmp_path) < whole_memory(tmp_path / "no such") > machine


DECODER_GRAPH, ENCODER_GRAPH = "decoder_model_merged.onnx", "audio_encoder.onnx"


@pytest.mark.parametrize(
    ("recipe", "graph", "part", "change"),
    [
        (
            "int4",
            DECODER_GRAPH,
            "layers.1.mlp.down_proj.MatMul.weight_scales_float16",
            lambda values: 0 * values,
        ),
        (
            "int4",
            DECODER_GRAPH,
            "layers.0.mlp.up_proj.MatMul.weight_Q4",
            lambda values: np.roll(values, 1, 0),
        ),
        ("int8", DECODER_GRAPH, "layers.0.attn.qkv_proj.MatMul.weight_Q8", lambda values: values ^ 128),
        ("int4", DECODER_GRAPH, "layers.1.input_layernorm.weight", lambda values: 1.5 * values),
        ("int8", ENCODER_GRAPH, "_int8", lambda values: np.roll(values, 1, 1)),
        ("int8", "embed_tokens.onnx", "weight_scales_float16", lambda values: values * np.float32(np.nan)),
        ("int4", "embed_tokens.onnx", "weight_Q4", lambda values: np.roll(values, 1, 0)),
        ("int8", ENCODER_GRAPH, "_Q8", lambda values: np.roll(values, 1, 0)),
        ("int4", ENCODER_GRAPH, "embed_positions.weight_float16", lambda values: 1.01 * values),
    ],
)
def test_a_matrix_that_is_not_the_models_is_seen_where_logits_cannot_tell(
    float_bundle, bundles, tmp_path, recipe, graph, part, change
):
    folder = tmp_path / "onnx"
    shutil.copytree(bundles[recipe].path / "onnx", folder)
    check_weights(float_bundle.path / "onnx", folder)
    model = onnx.load(folder / graph)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(part))
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))
    onnx.save(model, folder / graph)
    with pytest.raises(ExportError, match=f"in the quantised {graph}, .*report the model"):
        check_weights(float_bundle.path / "onnx", folder)


def test_a_matrix_that_is_missing_is_seen(float_bundle, bundles, tmp_path):
    folder = tmp_path / "onnx"
    shutil.copytree(bundles["int4"].path / "onnx", folder)
    model = onnx.load(folder / DECODER_GRAPH)
    node = next(node for node in model.graph.node if node.name.endswith("/layers.1/attn/o_proj/MatMul"))
    model.graph.node.remove(node)
    onnx.save(model, folder / DECODER_GRAPH)
    with pytest.raises(ExportError, match=r"layers.1/attn/o_proj/MatMul is missing"):
        check_weights(float_bundle.path / "onnx", folder)
