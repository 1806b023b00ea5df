"""The page that says what fits where is made of what the code predicts."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_and_the_picture_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("fit_tables", ROOT / "docs" / "fit_tables.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.written(text) == text, "python docs/fit_tables.py writes them"
    assert page.PICTURE.read_text(encoding="utf-8") == page.picture()
    assert text.count("`raspberry-pi-5`") == len(page.MODELS)
