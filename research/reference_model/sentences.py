"""Sentences for `prunella synth`: novels for grammar, a word list and a dictionary for words, commands for what devices hear.

    apt-get download r-cran-janeaustenr scowl wordnet-base
    python research/reference_model/sentences.py --novels r-cran-janeaustenr_*.deb --words scowl_*.deb \\
        --glosses wordnet-base_*.deb --commands commands.txt --unlike dev.jsonl > sentences.txt

The novels are Jane Austen's (public domain, as packed for R by Debian), the words those of SCOWL's sizes 10 to 40, the
glosses WordNet's definitions and examples (its own free licence), as far as they are made of those words. A sentence that shares six words in a row with a transcript of `--unlike` is left out, so that no dev text is trained on.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from prunella.device_runtime.decoding.phrase_grammar import number_words

_SHARED = 6
_SHORTEST = 4  # words of a joined passage
_STRING = re.compile(
    rb"\x00[\x04\x00]\x00\x09(....)", re.S
)  # an R character vector's element, and its length
_NUMBERS = [
    *(number_words(number) for number in (*range(20), *range(20, 100, 10))),
    "hundred", "thousand", "first", "second", "third",
]  # fmt: skip


def novel_sentences(package: Path) -> list[str]:
    """Sentences of 4 to 26 words without digits, from the Debian package r-cran-janeaustenr."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        (data,) = Path(folder).rglob("janeaustenr/data/Rdata.rdb")
        return book_sentences("\n".join(_strings(data.read_bytes())))


def book_sentences(book: str) -> list[str]:
    """Sentences of 4 to 26 words without digits of a plain text, its paragraphs set apart by empty lines."""
    sentences = []
    for paragraph in re.split(r"\n\s*\n", book):
        text = re.sub(r'[_"“”]', "", " ".join(paragraph.split()).replace("--", ", "))
        if re.search(r"\d", text) or re.match(r"chapter|volume", text, re.I):
            continue
        text = re.sub(r"\b(Mrs|Mr|Dr|St)\.", r"\1", text)
        for sentence in re.split(r"(?<=[.!?;])\s+", text):
            capitals = sum(word.isupper() and len(word) > 1 for word in sentence.split())
            if 4 <= len(sentence.split()) <= 26 and sentence.isascii() and capitals < 2:
                sentences.append(sentence.strip(" ,;"))
    return sentences


def joined(lines: Iterable[str], longest: int, rng: random.Random) -> list[str]:
    """Neighbouring lines put together, to as many words as drawn between 4 and `longest` each time.

    Recordings of people who read aloud are cut at pauses, not at full stops: 12 s are common.
    """
    passages: list[str] = []
    room = 0
    for line in lines:
        words = len(line.split())
        if words <= room:
            stop = "" if passages[-1].endswith((".", "!", "?", ";")) else ","
            passages[-1] += f"{stop} {line}"
        else:
            passages.append(line)
            room = rng.randint(_SHORTEST, longest)
        room -= words
    return passages


def common_words(package: Path) -> set[str]:
    """Words of SCOWL's sizes 10 to 40, from the Debian package scowl."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        words: set[str] = set()
        for size in (10, 20, 35, 40):
            for path in Path(folder).rglob(f"*-words.{size}"):
                if path.name.startswith(("english-", "american-")):
                    words.update(path.read_text(encoding="latin1").split())
    return words


def word_lines(words: set[str], rng: random.Random) -> list[str]:
    """Every word once, in random lines of 1 to 10, the short ones as common as the long."""
    chosen = sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)
    rng.shuffle(chosen)
    lines = []
    while chosen:
        count = rng.randint(1, 10)
        lines.append(" ".join(chosen[:count]))
        del chosen[:count]
    return lines


def number_lines(count: int, rng: random.Random) -> list[str]:
    """Lines of 1 to 6 number words."""
    weights = [4 if at < 10 else 1 for at in range(len(_NUMBERS))]
    return [" ".join(rng.choices(_NUMBERS, weights, k=rng.choice((1, 1, 2, 3, 4, 6)))) for _ in range(count)]


def gloss_lines(package: Path, words: set[str]) -> list[str]:
    """Definitions and examples of 4 to 20 words, all of them in `words`, from the Debian package wordnet-base."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        lines = []
        for path in sorted(Path(folder).rglob("wordnet/data.*")):
            for line in path.read_text(encoding="latin1").splitlines():
                _, bar, gloss = line.partition(" | ")
                if bar and not line.startswith("  "):  # the licence
                    lines += re.findall(r'"([^"]+)"', gloss) + re.sub(r'"[^"]*"', "", gloss).split(";")
    lines = [line.strip(" .") for line in lines]
    known = {word.lower() for word in words}
    return [
        line
        for line in dict.fromkeys(lines)
        if 4 <= len(line.split()) <= 20
        and not re.search(r"[^A-Za-z',.?!; -]", line)
        and known.issuperset(re.findall(r"[a-z']+", line.lower()))
    ]


def command_lines(path: Path) -> list[str]:
    """Lines of 2 to 20 words without digits, each once."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [
        line for line in dict.fromkeys(lines) if 2 <= len(line.split()) <= 20 and not re.search(r"\d", line)
    ]


def unlike(sentences: Iterable[str], manifest: Path) -> list[str]:
    """Those that share no six words in a row with a transcript of the manifest."""
    known: set[tuple[str, ...]] = set()
    for line in manifest.read_text(encoding="utf-8").splitlines():
        known.update(_runs(json.loads(line)["text"]))
    return [sentence for sentence in sentences if known.isdisjoint(_runs(sentence))]


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.sub(r"[^a-z' ]", "", text.lower()).split()
    return [tuple(words[at : at + _SHARED]) for at in range(len(words) - _SHARED + 1)]


def _strings(data: bytes) -> Iterable[str]:
    """Strings of R's lazy-load database: chunks of a big-endian length and a zlib stream."""
    at = 0
    while at < len(data) - 4:
        stream = zlib.decompressobj()
        try:
            raw = stream.decompress(data[at + 4 :])
        except zlib.error:
            raw = b""
        if not raw or len(raw) != struct.unpack(">I", data[at : at + 4])[0]:
            at += 1
            continue
        at = len(data) - len(stream.unused_data)
        end = 0
        for match in _STRING.finditer(raw):
            (length,) = struct.unpack(">I", match.group(1))
            if match.start() >= end and length < 400:
                end = match.end() + length
                yield raw[match.end() : end].decode("latin1")


def _words(sentences: list[str], most: int) -> list[str]:
    taken, count = [], 0
    for sentence in sentences:
        taken.append(sentence)
        count += len(sentence.split())
        if count >= most:
            break
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--novels", type=Path, required=True, metavar="DEB")
    parser.add_argument(
        "--books", type=Path, nargs="+", default=[], metavar="FILE", help="plain texts, read like the novels"
    )
    parser.add_argument("--words", type=Path, required=True, metavar="DEB")
    parser.add_argument("--glosses", type=Path, required=True, metavar="DEB")
    parser.add_argument("--commands", type=Path, required=True, metavar="FILE")
    parser.add_argument("--unlike", type=Path, required=True, metavar="MANIFEST")
    parser.add_argument("--novel-words", type=int, default=110_000)
    parser.add_argument("--gloss-words", type=int, default=90_000)
    parser.add_argument("--command-words", type=int, default=20_000)
    parser.add_argument("--number-lines", type=int, default=0)
    parser.add_argument(
        "--longest", type=int, metavar="WORDS", help="join neighbouring lines to at most so many words"
    )
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    if args.longest is not None and args.longest < _SHORTEST:
        parser.error(f"--longest {args.longest}: give {_SHORTEST} or more")
    rng = random.Random(args.seed)
    words = common_words(args.words)
    lines = word_lines(words, rng) + number_lines(args.number_lines, rng)
    novels, glosses = novel_sentences(args.novels), gloss_lines(args.glosses, words)
    for book in args.books:
        novels += book_sentences(book.read_text(encoding="utf-8"))
    if args.longest:
        rng.shuffle(glosses)  # the novels' sentences belong together as they stand
        novels, glosses = joined(novels, args.longest, rng), joined(glosses, args.longest, rng)
    for sentences, most in (
        (novels, args.novel_words),
        (glosses, args.gloss_words),
        (command_lines(args.commands), args.command_words),
    ):
        sentences = unlike(sentences, args.unlike)
        rng.shuffle(sentences)
        lines += _words(sentences, most)
    rng.shuffle(lines)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
