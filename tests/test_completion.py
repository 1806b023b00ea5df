"""What the shells' scripts complete; bash's and fish's are run."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from pathlib import Path

import pytest

from prunella import cli, completion

pytestmark = pytest.mark.slow

CASES = [
    (["tr"], ["transcribe"]),
    (["help", "tr"], ["transcribe"]),
    (["build", "--str"], ["--strategy"]),
    (["build", "--strategy", "gr"], ["greedy"]),
    (["build", "--target", "jetson-o"], ["jetson-orin-nano", "jetson-orin-nano-jetpack7"]),
    (["prune", "ref"], ["reference", "reference-pruned"]),
    (["transcribe", ""], ["clip.flac"]),
    (["export", "-o", ""], ["clip.flac"]),
    (["prune", "c"], ["clip.flac"]),
    (["export", "reference", "--target", "cl"], ["clip.flac"]),
    (["targets", "s"], ["show"]),
    (["targets", "show", "ra"], ["raspberry-pi-4", "raspberry-pi-5"]),
    (["targets", "show", "x", "--tr"], ["--traceback"]),
    (["completion", ""], ["bash", "zsh", "fish"]),
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with one file, and the scripts beside it."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in completion.SHELLS:
        (folder / f"prunella.{shell}").write_text(completion.script(shell), encoding="utf-8")
    (folder / "desk").mkdir()
    (folder / "desk" / "clip.flac").touch()
    return folder / "desk"


@pytest.mark.parametrize(("words", "found"), CASES)
def test_bash_completes(desk, words, found):
    call = (
        'source ../prunella.bash; COMP_WORDS=(prunella "$@"); COMP_CWORD=$#\n'
        '_shtab_prunella prunella "${@: -1}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", call, "bash", *words], capture_output=True, text=True, check=True, cwd=desk
    )
    assert done.stdout.split() == found and done.stderr == ""


@pytest.mark.parametrize(("words", "found"), CASES)
def test_fish_completes(desk, words, found):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    call = f"source ../prunella.fish; complete -C 'prunella {' '.join(words)}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", call], capture_output=True, text=True, check=True, cwd=desk
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == found and done.stderr == ""


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_script_knows_every_verb_and_its_options(desk, shell):
    text = (desk.parent / f"prunella.{shell}").read_text(encoding="utf-8")
    for verb in cli.VERBS:
        assert verb in text
        for action in cli.verb_parser(verb).arguments:
            for name in action.option_strings:
                shown = name if shell != "fish" else name.replace("--", "-l ")
                assert not name.startswith("--") or shown in text, (verb, name)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_script_is_one_of_its_shell(desk, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", f"prunella.{shell}"], capture_output=True, text=True, cwd=desk.parent)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_verb_whose_libraries_are_missing_is_completed_by_its_name(monkeypatch):
    monkeypatch.setitem(cli.VERBS, "info", ("prunella.device_runtime.nothing", "a module that is not there"))
    assert "_shtab_prunella_info_option_strings=(-h --help)" in completion.script("bash")


def test_the_verb_prints_it(capsys):
    assert cli.main(["completion", "fish"]) == 0
    assert capsys.readouterr().out == completion.script("fish")
    assert importlib.import_module(cli.VERBS["completion"][0]) is completion
