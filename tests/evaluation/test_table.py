import pytest

from prunella.evaluation.table import megabytes, number, percent, render_table


def test_columns_align():
    assert render_table(["name", "x"], [["a", "1"], ["long name", "12.5"]]).splitlines() == [
        "name          x",
        "---------  ----",
        "a             1",
        "long name  12.5",
    ]


def test_markdown_escapes_pipes():
    lines = render_table(["n", "x"], [["a|b", "1"]], markdown=True).splitlines()
    assert lines[1].startswith("| :--") and lines[1].endswith("-: |")
    assert "a\\|b" in lines[2]


def test_a_ragged_row_is_refused():
    with pytest.raises(ValueError, match="needs 2 cells"):
        render_table(["a", "b"], [["1"]])


def test_cells():
    assert (percent(0.1234), percent(None), number(1.005, 1), number(None)) == ("12.3", "-", "1.0", "-")
    assert megabytes(86_400_000) == "86.4"
