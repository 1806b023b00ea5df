"""The table that a build ends in: every form of the model, its size, its errors and its speed."""

from __future__ import annotations

from dataclasses import dataclass

from prunella.evaluation.table import render_table


@dataclass(frozen=True)
class BuildRow:
    """One line of the final table. Rates are shares; memory and sizes in bytes; None where it does not apply."""

    name: str
    layers: int | None
    disk_bytes: int | None
    cross_entropy: float | None
    wer: float
    wer_low: float
    wer_high: float
    real_time_factor: float
    decode_tokens_per_second: float | None
    peak_memory_bytes: int | None


def render_rows(rows: tuple[BuildRow, ...], *, markdown: bool = False, heading: str = "") -> str:
    """The final table as text, below a heading if there is one."""
    header = ("system", "layers", "MB", "loss", "WER % (95 %)", "RTF", "tokens/s", "peak MB")
    cells = [
        (
            row.name,
            _cell(row.layers, "d"),
            _cell(row.disk_bytes and row.disk_bytes / 1e6, ".0f"),
            _cell(row.cross_entropy, ".3f"),
            f"{100 * row.wer:.1f} ({100 * row.wer_low:.1f}-{100 * row.wer_high:.1f})",
            _cell(row.real_time_factor, ".3f"),
            _cell(row.decode_tokens_per_second, ".0f"),
            _cell(row.peak_memory_bytes and row.peak_memory_bytes / 1e6, ".0f"),
        )
        for row in rows
    ]
    return (f"{heading}\n\n" if heading else "") + render_table(header, cells, markdown=markdown)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
