"""What was said above what was heard, word by word, with marks under the words that are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jiwer

from prunella.evaluation.word_errors import count_errors, normalize

_NOTHING = "-"
_SAID, _HEARD, _MARKS = "  said   ", "  heard  ", "         "


@dataclass(frozen=True)
class AlignedWord:
    """A word of the reference beside the one that was heard for it; None: it was not heard, or nothing was said."""

    said: str | None
    heard: str | None

    @property
    def wrong(self) -> bool:
        return self.said != self.heard


def align(reference: str, hypothesis: str) -> tuple[AlignedWord, ...]:
    """Both texts word by word, normalized as they are for the word error rate."""
    said, heard = normalize(reference).split(), normalize(hypothesis).split()
    if not said:
        return tuple(AlignedWord(None, word) for word in heard)
    words: list[AlignedWord] = []
    for chunk in jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]:
        left = said[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for i in range(max(len(left), len(right))):
            words.append(AlignedWord(left[i] if left else None, right[i] if right else None))
    return tuple(words)


def marked(name: str, reference: str, hypothesis: str, *, width: int = 100) -> str:
    """A clip in lines of at most `width` letters (longer words apart): its errors, and both texts in columns, wrong words marked.

    Args:
        name: of the clip.
        reference: what was said.
        hypothesis: what was heard.
        width: of the lines.
    """
    counts = count_errors(reference, hypothesis).words
    wrong = f"{counts.errors} wrong" if counts.errors else "all right"
    lines = [f"{name}: {counts.reference} words, {wrong}"]
    for row in _rows(align(reference, hypothesis), width - len(_SAID)):
        columns = [(word.said or _NOTHING, word.heard or _NOTHING, word.wrong) for word in row]
        widths = [max(len(said), len(heard)) for said, heard, _ in columns]
        lines.append(_SAID + _spaced([said for said, _, _ in columns], widths))
        lines.append(_HEARD + _spaced([heard for _, heard, _ in columns], widths))
        if any(word.wrong for word in row):
            marks = ["^" * size if bad else "" for size, (_, _, bad) in zip(widths, columns, strict=True)]
            lines.append(_MARKS + _spaced(marks, widths))
    return "\n".join(line.rstrip() for line in lines)


def _rows(words: Sequence[AlignedWord], width: int) -> Iterator[list[AlignedWord]]:
    row: list[AlignedWord] = []
    taken = 0
    for word in words:
        size = max(len(word.said or _NOTHING), len(word.heard or _NOTHING)) + 1
        if row and taken + size - 1 > width:
            yield row
            row, taken = [], 0
        row.append(word)
        taken += size
    if row:
        yield row


def _spaced(cells: Sequence[str], widths: Sequence[int]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
