"""The README's layout holds, and its commands are run, on a tiny model in place of `reference`."""

import json
import re
import shlex
from pathlib import Path

import pytest
from documentation import ROOT, blocks

from prunella.cli import main

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return [block.text for block in blocks(README) if block.language == language and not block.reason]


@pytest.fixture
def desk(small_speech_llm, noise_manifest, tmp_path, monkeypatch) -> Path:
    """A folder that looks like the repository with a tiny model saved in it."""
    from prunella.speech_llm import save_checkpoint

    save_checkpoint(small_speech_llm, tmp_path / "tiny")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_verbs_of_the_readme_run_in_order(desk, noise_manifest, capfd):
    _, commands = _blocks("sh")
    lines = commands.strip().splitlines()
    assert len(lines) == 6
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "prunella"
        words = ["tiny" if word == "reference" else word for word in words]
        if words[0] == "prune":  # noise is as good as speech for a random model, and shorter
            words = [str(noise_manifest) if word.endswith("calibration.jsonl") else word for word in words]
        code = main(words)
        output = capfd.readouterr()
        # A random model may well write nothing on a clip, which `bench` rightly calls a failure.
        assert code == 0 or (words[0] == "bench" and "empty" in output.out + output.err), (
            f"{line}: {output.err}"
        )


@pytest.mark.slow
def test_the_python_of_the_readme_runs(desk, noise_manifest, capsys):
    (code,) = _blocks("python")
    assert len(list(filter(None, code.splitlines()))) == 10
    code = code.replace('"reference"', '"tiny"').replace(
        "examples/clips/calibration.jsonl", str(noise_manifest)
    )
    exec(compile(code, "README.md", "exec"), {})
    assert (desk / "out" / "python" / "bundle.json").exists()


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    commands, _ = _blocks("sh")
    targets = re.findall(r"^make (\w+)", commands, re.M)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_what_the_demo_is_said_to_print_is_what_it_runs():
    makefile = (ROOT / "Makefile").read_text().replace("@$(BIN)/", "")
    command = _blocks("text")[0].splitlines()[0]
    assert command.startswith("prunella eval") and command in makefile


def test_it_is_read_in_two_minutes():
    assert len(README.splitlines()) <= 120
    assert "Whisper tiny.en" in "\n".join(README.splitlines()[:10])
    assert len(re.findall(r"^!\[", README, re.M)) == 1
    assert len(re.findall(r"(?:^\|.*\n)+", README, re.M)) == 2  # measured, and what runs where


def test_every_figure_table_has_its_command():
    measured = README.split("## Measured")[1].split("## What runs where")[0]
    tables = re.findall(r"(?:^\|.*\n)+", measured, re.M)
    assert tables
    for table in tables:
        around = measured[max(0, measured.index(table) - 600) : measured.index(table) + len(table) + 600]
        assert re.search(r"`(?:prunella|python|make) [^`]+`", around), table.splitlines()[0]


def test_the_table_and_the_picture_show_the_same_figures():
    rows = json.loads((ROOT / "docs" / "pictures" / "headline.json").read_text())["systems"]
    table = README.split("## Measured")[1].split("## What runs where")[0].replace("*", "")
    assert len(rows) == 5
    for row in rows:
        cells = (
            row["name"],
            row["layers"] or "-",
            row["mb"],
            f"{row['wer']} ({row['wer_low']}-{row['wer_high']})",
            row["real_time_factor"],
            row["peak_mb"],
        )
        assert f"| {' | '.join(map(str, cells))} |" in table, row["name"]
