"""A model that cannot be exported in the memory here is refused before it is read."""

import logging

import pytest

from prunella.device_runtime.base.errors import CheckpointError
from prunella.export.export import export
from prunella.export.memory import check_export_memory
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.speech_llm.checkpoint import save_checkpoint


def test_too_large_is_refused_and_tight_is_warned_of(small_speech_llm, tmp_path, monkeypatch, caplog):
    folder = save_checkpoint(small_speech_llm, tmp_path / "model")
    monkeypatch.setattr("prunella.export.memory._PEAKS", {"onnx": (0.0, 4.6), "gguf": (0.0, 1.75)})
    weights = sum(4 * one.numel() for one in small_speech_llm.parameters())
    monkeypatch.setattr("prunella.export.memory.whole_memory", lambda: 3 * weights)
    monkeypatch.setattr("prunella.export.memory.free_memory", lambda: weights)
    with pytest.raises(CheckpointError, match=r"a recipe of llama.cpp .* not exported layer by layer yet"):
        export(folder, "x86-cpu", tmp_path / "out", recipe="int4")
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.WARNING):
        check_export_memory(folder, find_bundle_recipe("Q4_K_M"))
    assert "it may be killed" in caplog.text
