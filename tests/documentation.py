"""Reading the README and the pages of `docs/`: their links, their commands, and the blocks that run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Written by `docs/generate.py` when the site is built.
GENERATED = ("cli.md", "bundle-schema.md")

_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^(?P<ticks>`{3,})(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=ticks)$",
    re.S | re.M,
)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?:    [^\n]*\n)+)")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block. `reason`: why it is not run, if it is not."""

    language: str
    text: str
    reason: str | None


def pages() -> list[Path]:
    """README, CONTRIBUTING and every page that is written by hand."""
    written = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name not in GENERATED]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *written]


def blocks(text: str) -> list[CodeBlock]:
    """The fenced blocks of a page, in their order."""
    return [CodeBlock(m["language"], m["text"], m["reason"]) for m in _FENCE.finditer(text)]


def command_lines(script: str) -> list[str]:
    """Commands of a shell block: continued lines joined, empty ones and comments left out."""
    lines = script.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def links(text: str) -> list[str]:
    """Targets of the links and pictures that stand outside of code."""
    return _LINK.findall(_INLINE.sub("", _FENCE.sub("", text)))


def anchors(text: str) -> set[str]:
    """What a link may name behind `#`: headings as GitHub and MkDocs write them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in plain}


def shell_commands(text: str) -> Iterator[list[str]]:
    """Every command that stands in a shell block or an indented block, as words."""
    shell = [block.text for block in blocks(text) if block.language == "sh"]
    rest = _FENCE.sub("", text)
    shell += ["\n".join(line[4:] for line in block.splitlines()) for block in _INDENTED.findall(rest)]
    yield from _as_words(line for script in shell for line in command_lines(script))


def named_commands(text: str) -> Iterator[list[str]]:
    """Every command that running text names, as words; with placeholders, and as much of it as is of interest there."""
    rest = _INDENTED.sub("", _FENCE.sub("", text))
    yield from _as_words(" ".join(code.split()) for code in _INLINE.findall(rest))


def _as_words(lines: Iterable[str]) -> Iterator[list[str]]:
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # prose in code, with an apostrophe
            continue
        commands: list[list[str]] = [[]]
        for word in words:
            if word in ("|", "&&", ";"):
                commands.append([])
            else:
                commands[-1].append(word)
        for command in commands:
            while command and re.fullmatch(r"[A-Z_]+=\S*", command[0]):  # NAME=value before a command
                command = command[1:]
            if command:
                yield command
