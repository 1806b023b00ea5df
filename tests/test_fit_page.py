"""The page that says what fits where is made of what the code predicts."""

import importlib.util
import shlex
from pathlib import Path

import pytest
from documentation import blocks, command_lines

from prunella.cli import main

ROOT = Path(__file__).parents[1]


def test_the_tables_and_the_picture_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("fit_tables", ROOT / "docs" / "fit_tables.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.written(text) == text, "python docs/fit_tables.py writes them"
    assert page.PICTURE.read_text(encoding="utf-8") == page.picture()
    assert text.count("`raspberry-pi-5`") == len(page.MODELS)


@pytest.mark.parametrize("example", ["raspberry_pi", "jetson_orin_nano", "macbook"])
def test_what_examples_ask_of_fit_is_answered(example, capsys):
    text = (ROOT / "examples" / example / "README.md").read_text(encoding="utf-8")
    lines = [line for block in blocks(text) for line in command_lines(block.text)]
    asked = [shlex.split(line)[1:] for line in lines if line.startswith("prunella fit ")]
    assert asked
    for words in asked:
        assert main(words) in (0, 1)  # 1: nothing keeps the budgets
        assert "predicted for 3 s" in capsys.readouterr().out
