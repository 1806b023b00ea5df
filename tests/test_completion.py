"""What the shells' scripts complete; bash's is run."""

from __future__ import annotations

import importlib
import subprocess

import pytest

from prunella import cli, completion

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bash_script() -> str:
    return completion.bash()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], ["transcribe"]),
        (["build", "--str"], ["--strategy"]),
        (["build", "--strategy", "gr"], ["greedy"]),
        (["build", "--target", "jetson"], ["jetson-agx-orin", "jetson-orin-nano"]),
        (["prune", "ref"], ["reference", "reference-pruned"]),
        (["transcribe", ""], []),  # files, then
        (["export", "-o", ""], []),
        (["targets", "s"], ["show"]),
        (["targets", "show", "ra"], ["raspberry-pi-5"]),
        (["targets", "show", "x", "--tr"], ["--traceback"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes(bash_script, words, found):
    call = 'COMP_WORDS=(prunella "$@"); COMP_CWORD=$#; _prunella; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"{bash_script}\n{call}", "bash", *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == found and done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_others_know_every_verb_and_option(shell):
    text = completion.SHELLS[shell]()
    dashes = "--" if shell == "zsh" else "-l "
    for one in completion.commands():
        assert one.words[-1] in text
        for option in one.options:
            for name in option.names:
                assert not name.startswith("--") or f"{dashes}{name[2:]}" in text, name


def test_a_verb_whose_libraries_are_missing_is_completed_by_its_name(monkeypatch):
    monkeypatch.setitem(cli.VERBS, "info", ("prunella.device_runtime.nothing", "a module that is not there"))
    (info,) = (one for one in completion.commands() if one.words == ("info",))
    assert info.options == () and "info" in completion.bash()


def test_the_verb_prints_it(capsys):
    assert cli.main(["completion", "fish"]) == 0
    assert capsys.readouterr().out == completion.fish()
    assert importlib.import_module(cli.VERBS["completion"][0]) is completion
