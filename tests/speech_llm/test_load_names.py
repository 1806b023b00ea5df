import pytest

from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm import hub


def test_a_mistyped_embedded_model_gets_a_hint_and_no_text_of_the_hub(monkeypatch):
    def offline(*given, **named):
        raise OSError("ConnectError: cannot find the appropriate snapshot folder")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="did you mean 'reference'") as refused:
        hub.download("refrence")
    assert "snapshot" not in str(refused.value)
