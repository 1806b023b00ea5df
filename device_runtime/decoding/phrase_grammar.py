"""Lists of commands as people write them: templates with alternatives, optional words and slots → the phrases they allow.

    # one template a line; a label before the colon is handed back with every phrase of it
    {room} = kitchen | living room | bedroom
    light_on: [please] (turn | switch) on the {room} light
    timer: set a timer for {number:minutes} minutes

The notation is that of Home Assistant's sentence templates: `(a | b)`, `[optional]`, `{list}` or `{list:slot name}`.
`{digit}` (zero to nine), `{number}` (zero to one hundred) and `{letter}` (a to z) are there from the start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunella.device_runtime.base.characters import has_half_characters
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.transcript import Phrase

MAX_PHRASES = 20_000
MAX_DEPTH = 32  # brackets within brackets
MAX_WAYS = 200_000  # that all lines and lists of a text are put together from
MAX_CHARACTERS = 8_000_000  # in all of them
_SHOWN = 60  # characters of a template that an error repeats

_LABEL = re.compile(r"([A-Za-z_][\w.-]*)\s*:\s+(?=\S)")
_LIST = re.compile(r"\{\s*(\w+)\s*\}\s*=\s*(.*)")
_SLOT = re.compile(r"\{\s*(\w+)\s*(?::\s*(\w+)\s*)?\}")
_PIECE = re.compile(r"\{[^{}]*\}|[()\[\]|]|[^\s(){}\[\]|]+|\S")

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


# Words and slots of one way through a template.
_Way = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]


@dataclass
class _Ways:
    """Ways through a part of a template, and the characters in all of them."""

    each: list[_Way]
    characters: int = 0


@dataclass
class _Budget:
    """What one text may still cost: a few lines can stand for more phrases than fit in memory."""

    ways: int = MAX_WAYS
    characters: int = MAX_CHARACTERS

    def spend(self, ways: int, characters: int) -> None:
        if ways > MAX_PHRASES:
            raise _too_many(ways)
        self.ways -= ways
        self.characters -= characters
        if self.ways < 0:
            raise UsageError(
                f"up to here the lines and lists have more than {MAX_WAYS} alternatives: split the text, or use "
                "fewer slots in a line"
            )
        if self.characters < 0:
            raise UsageError(
                f"up to here the lines and lists have more than {MAX_CHARACTERS} characters when they are written "
                "out: split the text, or use fewer slots in a line"
            )


def number_words(number: int) -> str:
    """0 to 100 as it is said: "zero", "twenty one", "one hundred"."""
    if not 0 <= number <= 100:
        raise ValueError(f"only 0 to 100 have words here, got {number}")
    if number == 100:
        return "one hundred"
    if number < 20:
        return (_ONES + _TEENS)[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")


NUMBERS = {number_words(number): number for number in range(101)}
LISTS: Mapping[str, tuple[str, ...]] = {
    "digit": _ONES,
    "number": tuple(NUMBERS),
    "letter": tuple("abcdefghijklmnopqrstuvwxyz"),
}


def read_phrases(path: str | Path) -> tuple[Phrase, ...]:
    """Every phrase that a file of templates allows.

    Raises:
        UsageError: the file cannot be read, or `parse_phrases` refuses it; the message names file and line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(
            f"{path} cannot be read ({reason}): give a text file with one phrase a line"
        ) from error
    return parse_phrases(text, name=str(path))


def parse_phrases(text: str, *, name: str = "the list of phrases") -> tuple[Phrase, ...]:
    """Every phrase that templates allow, in their order; of two with the same words the first stays.

    Args:
        text: one template or list a line; empty lines, and what follows a `#`, are left out.
        name: what errors call it.

    Raises:
        UsageError: a bracket that is not closed, an unknown list, no phrase at all, or more of them, or of what they are
            put together from, than `MAX_PHRASES`, `MAX_DEPTH`, `MAX_WAYS` and `MAX_CHARACTERS` allow.
    """
    budget = _Budget()
    lists = dict(LISTS)
    phrases: dict[str, Phrase] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        try:
            if has_half_characters(line):
                raise UsageError("half of a character (a surrogate) is no text: write it in UTF-8")
            if defined := _LIST.fullmatch(line):
                ways = _Template(defined[2], lists, budget).ways()
                lists[defined[1]] = tuple(dict.fromkeys(" ".join(words) for words, _ in ways if words))
                continue
            label = _LABEL.match(line)
            template = line[label.end() :] if label else line
            for words, slots in _Template(template, lists, budget).ways():
                said = " ".join(words)
                if said:
                    phrases.setdefault(said, Phrase(said, label[1] if label else template, slots))
            if len(phrases) > MAX_PHRASES:
                raise _too_many(len(phrases))
        except UsageError as error:
            raise UsageError(f"{name}, line {number}: {error}") from None
    if not phrases:
        raise UsageError(f"{name} has no phrase: write one a line, for example `turn on the (light | fan)`")
    return tuple(phrases.values())


class _Template:
    """A recursive descent over one line, as deep as `MAX_DEPTH`."""

    def __init__(self, text: str, lists: Mapping[str, tuple[str, ...]], budget: _Budget) -> None:
        self._pieces = _PIECE.findall(text)
        self._at = 0
        self._depth = 0
        self._lists = lists
        self._budget = budget

    def ways(self) -> list[_Way]:
        ways = self._alternatives(closing="")
        if self._at < len(self._pieces):
            raise UsageError(f"'{self._pieces[self._at]}' closes nothing: open it, or leave it out")
        return ways.each

    def _alternatives(self, closing: str) -> _Ways:
        ways = self._sequence()
        while self._at < len(self._pieces) and self._pieces[self._at] == "|":
            self._at += 1
            more = self._sequence()
            ways.each += more.each
            ways.characters += more.characters
            if len(ways.each) > MAX_PHRASES:
                raise _too_many(len(ways.each))
        if closing:
            if self._at == len(self._pieces) or self._pieces[self._at] != closing:
                raise UsageError(f"a bracket is not closed: '{closing}' is missing")
            self._at += 1
        return ways

    def _bracket(self, closing: str) -> _Ways:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UsageError(
                f"brackets are more than {MAX_DEPTH} deep: write its alternatives on lines of their own"
            )
        ways = self._alternatives(closing)
        self._depth -= 1
        return ways

    def _sequence(self) -> _Ways:
        ways = _Ways([((), ())])
        self._budget.spend(1, 0)
        while self._at < len(self._pieces) and self._pieces[self._at] not in ("|", ")", "]"):
            part = self._part()
            count = len(ways.each) * len(part.each)
            characters = ways.characters * len(part.each) + part.characters * len(ways.each)
            self._budget.spend(count, characters)
            each = [
                (words + more, slots + filled) for words, slots in ways.each for more, filled in part.each
            ]
            ways = _Ways(each, characters)
        return ways

    def _part(self) -> _Ways:
        piece = self._pieces[self._at]
        self._at += 1
        if piece == "(":
            return self._bracket(")")
        if piece == "[":
            ways = self._bracket("]")
            return _Ways([((), ()), *ways.each], ways.characters)
        if piece[0] in "{}":
            return self._slot(piece)
        words = [piece]  # and those that follow it, in one step
        while self._at < len(self._pieces) and self._pieces[self._at][0] not in "(){}[]|":
            words.append(self._pieces[self._at])
            self._at += 1
        return _Ways([(tuple(words), ())], _characters(words))

    def _slot(self, piece: str) -> _Ways:
        slot = _SLOT.fullmatch(piece)
        if not slot or slot[1] not in self._lists:
            raise UsageError(
                f"there is no list for {piece[:_SHOWN]}: define it above this line, as in `{{room}} = kitchen | "
                f"hall`, or use one of {', '.join(f'{{{known[:_SHOWN]}}}' for known in [*self._lists][:10])}"
            )
        values = self._lists[slot[1]]
        name = slot[2] or slot[1]
        return _Ways([((value,), ((name, value),)) for value in values], _characters(values))


def _characters(words: Sequence[str]) -> int:
    return sum(map(len, words)) + len(words)


def _too_many(count: int) -> UsageError:
    return UsageError(
        f"{count} phrases or more are too many (at most {MAX_PHRASES}): split the list, or use fewer slots in a line"
    )
