import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prunella.cli import VERBS, main
from prunella.device_runtime.base.errors import UsageError


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


def test_a_full_disk_no_memory_and_an_interrupt_are_said_in_a_line(monkeypatch, capsys):
    module = importlib.import_module("prunella.device_runtime.info")

    def full(_args):
        raise OSError(28, "No space left on device", "out/bundle")

    def interrupt(_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", full)
    assert main(["info", "x"]) == 1 and "disk is full (out/bundle)" in capsys.readouterr().err

    def greedy(_args):
        raise MemoryError("Unable to allocate 8.00 GiB")

    monkeypatch.setattr(module, "run", greedy)
    assert (
        main(["info", "x"]) == 1 and "memory ran out (Unable to allocate 8.00 GiB)" in capsys.readouterr().err
    )
    monkeypatch.setattr(module, "run", interrupt)
    assert main(["info", "x"]) == 130 and "interrupted" in capsys.readouterr().err


def test_a_part_of_prunella_that_is_missing_is_not_asked_of_pip(monkeypatch, capsys):
    monkeypatch.setitem(VERBS, "info", ("prunella.device_runtime.nothing", "a module that is not there"))
    assert main(["info", "x"]) == 1
    said = capsys.readouterr().err
    assert "installation of prunella is incomplete" in said and "nothing" in said and "pip" not in said


@pytest.mark.parametrize("wanted", [None, "0", "1"])
def test_tracebacks_are_for_those_who_ask(monkeypatch, capsys, wanted):
    module = importlib.import_module("prunella.device_runtime.info")

    def gone(_args):
        raise OSError(5, "Input/output error", "bundle")

    def ours(_args):
        raise UsageError("give a number")

    def explained(_args):
        raise UsageError("give a number") from ValueError("x is none")

    if wanted is None:
        monkeypatch.delenv("PRUNELLA_TRACEBACK", raising=False)
    else:
        monkeypatch.setenv("PRUNELLA_TRACEBACK", wanted)
    for run, foreign in ((gone, True), (ours, False), (explained, True)):
        monkeypatch.setattr(module, "run", run)
        assert main(["info", "x"]) in (1, 2)
        said = capsys.readouterr().err
        assert ("Traceback" in said and f"in {run.__name__}" in said) == (foreign and wanted == "1")
        assert said.splitlines()[-1].startswith("prunella: ")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["info", "x", "--traceback"], True),
        (["info", "--trace", "x"], True),
        (["info", "x"], False),
        (["targets", "show", "x86-cpu", "--traceback"], True),
        (["targets", "--traceback", "list"], True),
    ],
)
def test_every_verb_takes_traceback_as_an_option(words, wanted, monkeypatch, capsys):
    def gone(_args):
        raise OSError(5, "Input/output error", "bundle")

    monkeypatch.delenv("PRUNELLA_TRACEBACK", raising=False)
    monkeypatch.setattr(importlib.import_module(VERBS[words[0]][0]), "run", gone)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert ("Traceback" in said) == wanted and said.splitlines()[-1].startswith("prunella: ")


@pytest.mark.slow
def test_importing_the_library_changes_nothing_of_the_process():
    code = (
        "import logging; from transformers.utils import logging as theirs; "
        "before = theirs.get_verbosity(), theirs.is_progress_bar_enabled(), logging.getLogger('torch.onnx').level; "
        "import prunella.speech_llm, prunella.healing.heal, prunella.export.export; "
        "after = theirs.get_verbosity(), theirs.is_progress_bar_enabled(), logging.getLogger('torch.onnx').level; "
        "assert before == after, (before, after)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _program(shell, **environment):
    command = f"{shlex.quote(sys.executable)} -m prunella {shell}"
    return subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "shell", ["--version >&-", "targets list >&-", "--version 2>&-", "--version <&- >&- 2>&-"]
)
def test_closed_streams_are_a_quiet_end(shell):
    done = _program(shell)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("shell", ["--help", "--version", "targets list"])
def test_a_full_standard_output_is_said_in_a_line(shell):
    done = _program(f"{shell} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("prunella: ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_standard_error_loses_no_result():
    done = _program("transcribe nowhere x.wav 2>/dev/full")
    assert done.returncode == 1
    done = _program("-V 2>/dev/full")
    assert done.returncode == 0 and done.stdout.startswith("prunella ")


@pytest.mark.skipif(os.name != "posix", reason="no pseudo-terminals")
@pytest.mark.parametrize("verb", ["transcribe", "listen"])
def test_a_terminal_is_no_recording(verb, tmp_path):
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "prunella", verb, str(tmp_path), "-"],
        stdin=theirs,
        capture_output=True,
        text=True,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2 and "is a terminal" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8:strict"])
def test_no_name_ends_a_run_and_json_stays_json(encoding):
    code = (
        "import json, sys; from prunella.device_runtime.base.standard_streams import prepare_streams; prepare_streams();"
        "print(json.dumps({'file': 'ü 名 \\U0001f600 \\udce9'}, ensure_ascii=False))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    text = done.stdout.decode(encoding.partition(":")[0])
    assert json.loads(text) == {"file": "ü 名 \U0001f600 \udce9"}


def test_help_is_a_verb_too(capsys):
    assert main(["help"]) == 0 and "usage: prunella VERB" in capsys.readouterr().out
    for words in (["help", "info"], ["--help", "info"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0 and "usage: prunella info" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["transcribe", "B", "x.wav", "--jsno"], "no option '--jsno': did you mean '--json'? `prunella tr"),
        (
            ["transcribe", "B", "x.wav", "--recpie", "y"],
            "no option '--recpie'; `prunella transcribe --help` exp",
        ),
        (["devices", "--metr"], "did you mean '--meter'?"),
        (["transcribe"], "required: FILE; `prunella transcribe --help`"),
        (["transcribe", "--tread", "2"], "no option '--tread': did you mean '--threads'? `prunella tr"),
        (["info", "--jsno"], "no option '--jsno': did you mean '--json'? the following"),
        (["targets", "lst"], "did you mean 'list'?"),
        (["targets", "show", "x86-cpu", "--jsn"], "no option '--jsn': did you mean '--json'? `prunella"),
        (["transcribe", "B", "x.wav", "--threads", "two"], "argument --threads: invalid int value: 'two'"),
    ],
)
def test_wrong_words_are_one_line_that_says_what_was_meant(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("prunella: ") and said in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_verbs_of_verbs_list_by_default_and_options_stand_behind_the_verb(capsys):
    assert main(["targets"]) == main(["models"]) == 0
    out = capsys.readouterr().out
    assert "jetson-orin-nano" in out and "reference-pruned" in out
    assert main(["--json", "targets"]) == 2 and "prunella VERB --json" in capsys.readouterr().err


@pytest.mark.parametrize("limits", [["--beams", "1000"], ["--beams", "-1"], ["--threads", "10000"]])
@pytest.mark.parametrize("verb", ["transcribe", "listen", "serve", "eval"])
def test_limits_are_refused_before_anything_is_opened(verb, limits, capsys):
    words = {"transcribe": ["x.wav"], "eval": ["--speech", "no.jsonl"]}.get(verb, [])
    assert main([verb, "no-bundle", *words, *limits]) == 2
    assert "are not possible: give 1 to" in capsys.readouterr().err


def test_a_folder_of_bundles_names_them(tmp_path, capsys):
    (tmp_path / "pruned-int4").mkdir()
    (tmp_path / "pruned-int4" / "bundle.json").write_text("{}")
    assert main(["info", str(tmp_path)]) == 1
    assert f"name one of {tmp_path / 'pruned-int4'}" in capsys.readouterr().err
