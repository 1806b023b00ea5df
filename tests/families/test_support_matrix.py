"""`docs/families.md` says of every family and step what the tests say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import support_matrix
from tiny_families import FAMILY_NAMES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("support_tables", ROOT / "docs" / "support_matrix.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_family_and_step_has_a_cell_with_a_reason_where_it_is_no(tables):
    known = tables.cells(tables.between(tables.PAGE.read_text(encoding="utf-8"), "support"))
    assert set(known) == {*FAMILY_NAMES, "ultravox"} == set(tables.families())
    assert tables.between(tables.PAGE.read_text(encoding="utf-8"), "support") == tables.support_table(
        known, support_matrix.STEPS
    )


def test_the_refused_are_those_of_the_code(tables):
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.between(page, "refused") == tables.refused_table()
    assert "voxtral_realtime" in page and "kyutai" in page


def test_a_table_is_not_made_of_half_the_tests(tables):
    whole = {name: dict.fromkeys(support_matrix.STEPS, "yes") for name in tables.families()}
    assert tables.cells(tables.support_table(whole, support_matrix.STEPS)) == whole
    for said in ("failed", "skipped", "no: ", "no"):
        with pytest.raises(ValueError, match="ultravox, cut"):
            tables.support_table(
                whole | {"ultravox": whole["ultravox"] | {"cut": said}}, support_matrix.STEPS
            )


@pytest.mark.last
def test_the_page_says_what_the_tests_of_this_run_said(tables, request):
    """Moved behind all others; of what did not run here, nothing is known."""
    known = tables.cells(tables.between(tables.PAGE.read_text(encoding="utf-8"), "support"))
    for family, cells in request.config.stash[support_matrix.collected].items():
        for step, said in cells.items():
            if said in ("skipped", "failed"):  # told by the test itself
                continue
            assert known[family][step] == said, f"{family}, {step}: run docs/support_matrix.py"
