"""Plain-text and markdown tables: the first column left, the others right."""

from __future__ import annotations

from collections.abc import Sequence


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Align cells into columns, without a newline at the end.

    Args:
        header: names of the columns.
        rows: cells as text, as many in every row as in the header.
        markdown: with pipes and a rule, for a README.
    """
    lines = [list(header), *map(list, rows)]
    if any(len(line) != len(header) for line in lines):
        raise ValueError(f"every row of a table needs {len(header)} cells")
    if markdown:
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    if markdown:
        rule = [
            ":" + "-" * max(w - 1, 2) if i == 0 else "-" * max(w - 1, 2) + ":" for i, w in enumerate(widths)
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in [text[0], rule, *text[1:]])
    rule = ["-" * width for width in widths]
    return "\n".join("  ".join(line).rstrip() for line in [text[0], rule, *text[1:]])


def percent(rate: float | None, digits: int = 1) -> str:
    """A rate as per cent without the sign, or a dash."""
    return "-" if rate is None else f"{100 * rate:.{digits}f}"


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed digits, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def megabytes(count: int | None) -> str:
    """Bytes as MB (10^6), or a dash."""
    return "-" if count is None else f"{count / 1e6:.1f}"
