import importlib

import pytest

from prunella.cli import VERBS, main


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: prunella {verb}" in capsys.readouterr().out
    assert importlib.import_module(VERBS[verb][0]).__doc__


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("prunella ")
    assert main([]) == 2


def test_a_full_disk_and_an_interrupt_are_said_in_a_line(monkeypatch, capsys):
    module = importlib.import_module("prunella.device_runtime.info")

    def full(_args):
        raise OSError(28, "No space left on device", "out/bundle")

    def interrupt(_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", full)
    assert main(["info", "x"]) == 1 and "disk is full (out/bundle)" in capsys.readouterr().err
    monkeypatch.setattr(module, "run", interrupt)
    assert main(["info", "x"]) == 130 and "interrupted" in capsys.readouterr().err
