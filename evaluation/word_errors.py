"""Word and character errors of one clip: the Whisper English normaliser, then jiwer's alignment."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import jiwer
from whisper_normalizer.english import EnglishTextNormalizer


@dataclass(frozen=True)
class ErrorCounts:
    """How a hypothesis aligns with its reference, in words or in characters. Adds up over clips."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def reference(self) -> int:
        """Units in the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors for a unit of the reference; may exceed 1 (insertions)."""
        return self.per_reference(self.errors)

    def per_reference(self, count: int) -> float:
        """`count` as a rate of the reference; a reference without units counts as one."""
        return count / max(self.reference, 1)

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True)
class ClipErrors:
    """Errors of one clip. `empty`: nothing came out although something was said, which is a failure."""

    words: ErrorCounts
    characters: ErrorCounts
    empty: bool


@functools.lru_cache(maxsize=1)
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


def normalize(text: str) -> str:
    """Lower case, no punctuation, numbers and spellings made alike: the Whisper English normaliser.

    It also joins spoken digits ("one two" becomes "12", one word). What has no letter or digit becomes "".
    """
    normalized = _normalizer()(text).strip()
    # The normaliser keeps a lone "..." as if it were a word.
    return normalized if any(map(str.isalnum, normalized)) else ""


def count_errors(reference: str, hypothesis: str) -> ClipErrors:
    """Align one hypothesis with its reference, both normalized first."""
    reference, hypothesis = normalize(reference), normalize(hypothesis)
    if not reference:
        # jiwer refuses empty references; whatever was said on top of nothing is an insertion.
        words, characters = len(hypothesis.split()), len(hypothesis)
        return ClipErrors(ErrorCounts(insertions=words), ErrorCounts(insertions=characters), empty=False)
    return ClipErrors(
        _counts(jiwer.process_words(reference, hypothesis)),
        _counts(jiwer.process_characters(reference, hypothesis)),
        empty=not hypothesis,
    )


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Sum over clips: its `rate` is the corpus WER (or CER), not a mean of the clips' rates."""
    return sum(counts, ErrorCounts())


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorCounts:
    return ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)
