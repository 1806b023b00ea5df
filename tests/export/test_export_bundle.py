"""Bundles: complete or absent, the same by either way, free of this machine's paths."""

import json
from pathlib import Path

import onnx
import pytest

from prunella.cli import main
from prunella.device_runtime.base.errors import CheckpointError, TargetError, UsageError
from prunella.device_runtime.bundle import open_bundle
from prunella.export import export as module
from prunella.export.decoder import export_decoder
from prunella.export.export import export
from prunella.speech_llm.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow


GRAPHS = ("audio_encoder", "embed_tokens", "decoder_model_merged")


def checksums(bundle):
    return {name: entry.sha256 for name, entry in bundle.manifest.files.items()}


def test_what_a_bundle_holds(float_bundle, tiny_model):
    manifest = open_bundle(float_bundle.path).manifest
    assert set(manifest.files) == {
        "tokenizer.json",
        *(f"onnx/{graph}.onnx{data}" for graph in GRAPHS for data in ("", "_data")),
    }
    on_disk = {
        path.relative_to(float_bundle.path).as_posix()
        for path in float_bundle.path.rglob("*")
        if path.is_file()
    }
    assert on_disk == {*manifest.files, "bundle.json"}
    assert (manifest.recipe, manifest.target, manifest.name) == ("fp32", "x86-cpu", "tiny")
    assert manifest.prompt == tiny_model.prompt
    assert manifest.audio == tiny_model.config.audio


def test_no_path_of_this_machine(float_bundle):
    home = str(Path(module.__file__).parents[1]).encode()
    for name in ("audio_encoder", "embed_tokens", "decoder_model_merged"):
        content = float_bundle.file(f"onnx/{name}.onnx").read_bytes()
        assert home not in content
        assert b"site-packages" not in content


def test_direct_export_equals_requantising(tiny_model, bundles, tmp_path):
    direct = export(tiny_model, "x86-cpu", tmp_path / "direct", recipe="int4")
    assert checksums(direct) == checksums(bundles["int4"])
    assert [path.name for path in tmp_path.iterdir()] == ["direct"]


def test_rotary_tables_end_with_the_context(float_bundle):
    graph = onnx.load(float_bundle.file("onnx/decoder_model_merged.onnx")).graph
    tables = [tensor for tensor in graph.initializer if tensor.name in ("cos_cache", "sin_cache")]
    assert [list(tensor.dims) for tensor in tables] == [[2048, 8]] * 2


@pytest.mark.parametrize("stage", ["export_decoder", "export_audio_encoder", "seal_bundle"])
def test_interrupted_export_leaves_nothing(stage, tiny_model, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, stage, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tiny_model, "x86-cpu", tmp_path / "bundle", recipe="fp32")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_export_keeps_the_old_bundle(tiny_model, float_bundle, tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    export(tiny_model, "x86-cpu", out, recipe="int4")
    before = checksums(open_bundle(out))
    monkeypatch.setattr(module, "requantize", lambda *args, **more: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(tiny_model, "x86-cpu", out, recipe="int4")
    assert checksums(open_bundle(out)) == before


def test_the_verb(tiny_model, tmp_path, capfd):
    save_checkpoint(tiny_model, tmp_path / "model")
    arguments = [str(tmp_path / "model"), "--target", "x86-cpu", "-o", str(tmp_path / "bundle")]
    assert main(["export", *arguments]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'bundle'}\n"
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["recipe"] == "int4"


def test_what_cannot_be_exported_is_said(tiny_model, tmp_path):
    with pytest.raises(TargetError, match="no target 'x86-cpv': did you mean 'x86-cpu'"):
        export(tiny_model, "x86-cpv", tmp_path / "bundle")
    with pytest.raises(UsageError, match="no recipe 'int5': did you mean"):
        export(tiny_model, "x86-cpu", tmp_path / "bundle", recipe="int5")
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        export_decoder(tmp_path, tmp_path / "onnx")


def test_heads_that_onnxruntime_cannot_run_are_refused(tiny_model, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from prunella.device_runtime.base.errors import CheckpointError

    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
        )
    )
    with pytest.raises(CheckpointError, match="multiple of 16"):
        module.export_float(tiny_model.with_decoder(decoder), "x86-cpu", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
