import pytest

from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm import hub
from prunella.speech_llm.load import resolve


def test_a_mistyped_embedded_model_gets_a_hint_and_no_text_of_the_hub(monkeypatch):
    def offline(*given, **named):
        raise OSError("ConnectError: cannot find the appropriate snapshot folder")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="did you mean 'reference'") as refused:
        hub.download("refrence")
    assert "snapshot" not in str(refused.value)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(CheckpointError, match=r"model.gguf is a file: a model is a folder"):
        resolve(tmp_path / "model.gguf")


def test_a_typing_error_is_not_sent_to_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda *given, **named: asked.append(given))
    with pytest.raises(CheckpointError, match="did you mean 'reference-pruned'"):
        resolve("referenc-pruned")
    assert not asked
