"""The verb: refuses what is not float, leaves nothing half-written."""

from dataclasses import replace

import pytest

from prunella.cli import main
from prunella.device_runtime.base.errors import BundleError
from prunella.device_runtime.bundle import (
    MANIFEST_NAME,
    AudioSpec,
    BundleManifest,
    DecoderSpec,
    PromptSpec,
    open_bundle,
)
from prunella.quantize import bundle_writer
from prunella.quantize.bundle_writer import requantize, seal_bundle
from prunella.quantize.onnx_drift import Drift


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "float"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "onnx").mkdir()
    for graph in ("audio_encoder", "embed_tokens", "decoder_model_merged"):
        (folder / "onnx" / f"{graph}.onnx").touch()
    manifest = BundleManifest(
        name="tiny",
        family="ultravox",
        target="x86-cpu",
        engines=("onnx",),
        recipe="fp32",
        audio=AudioSpec(),
        prompt=PromptSpec.around_audio("", "", (), (), (2,)),
        decoder=DecoderSpec(2, 4, 1, 4, 8),
    )
    seal_bundle(manifest, folder)
    return open_bundle(folder)


def test_a_quantised_bundle_is_refused(bundle, tmp_path, capsys):
    quantised = replace(bundle.manifest, recipe="int8")
    (bundle.path / MANIFEST_NAME).write_text(quantised.dumps())
    assert main(["quantize", str(bundle.path), "--recipe", "int4", "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "is int8, which cannot be quantised again" in error
    assert "--recipe fp32" in error
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_graphs_is_refused(bundle, tmp_path):
    (bundle.path / "onnx" / "audio_encoder.onnx").unlink()  # after it was opened
    with pytest.raises(BundleError, match=r"holds no audio_encoder.onnx: export the model again"):
        requantize(bundle, "int4", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float"]


def test_interrupted_between_graphs_and_seal(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_writer, "quantize_graphs", lambda *args: None)
    monkeypatch.setattr(bundle_writer, "measure_drift", lambda *args: Drift())

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_writer, "seal_bundle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        requantize(bundle, "int4", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float"]


def test_an_unknown_recipe_is_bad_usage(bundle, tmp_path, capsys):
    assert main(["quantize", str(bundle.path), "--recipe", "int3", "-o", str(tmp_path / "out")]) == 2
    assert "no recipe 'int3': did you mean" in capsys.readouterr().err
