"""How a transcript is read out of what a model says around it, while it is being said and at the end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunella.device_runtime.bundle import Language, PromptSpec
from prunella.device_runtime.decoding import diarized
from prunella.device_runtime.decoding.template_text import strip_template
from prunella.device_runtime.transcript import Turn

ENGLISH = "English"
_MARKER = "<asr_text>"
# Qwen3-ASR says "language English<asr_text>..." (`Qwen3ASRProcessor`); a name may have several words.
_TAG = re.compile(r"(?:(?<![^\s>])language((?:\s+[^\s<]{1,24}){0,3})\s*)?<asr_text>\s*")
# The end of a text that may yet become a tag: any beginning of one.
_WORD = "language"
_HALF_WORD = "|".join(_WORD[:length] for length in range(1, len(_WORD)))
_HALF_MARKER = "|".join(re.escape(_MARKER[:length]) for length in range(1, len(_MARKER)))
_BEGUN_TAG = re.compile(
    rf"(?:(?<![^\s>])(?:(?:language(?:\s+[^\s<]{{1,24}}){{0,3}}\s*)(?:{_HALF_MARKER})?|{_HALF_WORD})|(?:{_HALF_MARKER}))\Z"
)
_TAG_ALONE = re.compile(r"language\s+(?:None|[A-Z][a-z]+)\s*\Z")
_TOO_MANY_TAGS = 3
_FRAMES = (
    "The spoken content of the audio is",
    "The transcription of the audio is",
    "The content of the input audio is",
)
_QUOTES = "'\""
_SECONDS_PER_TURN = 3.0  # the token cap leaves room for no more speakers' turns
READERS = ("as-is", "language-tag", "quoted", "diarized")


def read_answer(text: str, answer: str, *, done: bool = True) -> str:
    """The transcript in a model's answer, or in as much of it as there is.

    Args:
        text: what the model has said so far, special tokens left out.
        answer: one of `READERS`, as `PromptSpec.answer` names it.
        done: whether that is all.
    """
    reader = AnswerReader(answer)
    if not done:
        return strip_template(reader.shown(text))
    return strip_template(_quotation(text) if answer == "quoted" else reader.whole(text))


def opening_of(answer: str, language: str = ENGLISH) -> str:
    """What a model of this kind says before a transcript (`language`: its English name)."""
    openings = {
        "language-tag": f"language {language}{_MARKER}",
        "quoted": f'{_FRAMES[0]} "',
        "diarized": diarized.OPENING,
    }
    return openings.get(answer, "")


def closing_of(answer: str) -> str:
    """What it says behind one."""
    return {"quoted": '".', "diarized": diarized.CLOSING}.get(answer, "")


def frames_in(answer: str, seconds: float) -> int:
    """How often what stands around a transcript may stand in an answer about so many seconds: once, or around every turn."""
    return 1 + int(seconds / _SECONDS_PER_TURN) if answer == "diarized" else 1


def most_around(answer: str, seconds: float) -> int:
    """Most tokens of that, whatever the tokenizer: a byte each. A language's are the prompt's, see `PromptSpec.most_ids`."""
    frame = "" if answer == "language-tag" else opening_of(answer) + closing_of(answer)
    return len(frame.encode()) * frames_in(answer, seconds)


def write_answer(text: str, answer: str, language: str = ENGLISH, *, seconds: float = 0.0) -> str:
    """Inverse of `read_answer`: what a model of this kind says of a transcript (`language`: its English name; `seconds`: of its audio)."""
    if answer == "diarized":
        return diarized.tagged(text, seconds)
    return f"{opening_of(answer, language)}{text}{closing_of(answer)}"


@dataclass(frozen=True)
class AnswerReader:
    """Reads one kind of answer.

    Attributes:
        answer: the kind, see `PromptSpec.answer`.
        languages: whose codes are known.
        chosen: code of the one that stands in the prompt, so that the answer does not name it; "": none.
    """

    answer: str = "as-is"
    languages: tuple[Language, ...] = ()
    chosen: str = ""

    @staticmethod
    def of(prompt: PromptSpec) -> AnswerReader:
        """What reads the answers to a prompt: with its language in it, a tag is no part of them."""
        tagged = prompt.answer == "language-tag"
        kind = "as-is" if tagged and prompt.language else prompt.answer
        return AnswerReader(kind, prompt.languages, prompt.language)

    @property
    def plain(self) -> bool:
        """The answer is the transcript."""
        return self.answer == "as-is"

    def shown(self, said: str) -> str:
        """The transcript in what was said so far. It only grows: what may yet turn out to be no part of it waits."""
        if self.answer == "language-tag":
            begun = _BEGUN_TAG.search(said)
            return _without_tags(said[: begun.start()] if begun else said)
        if self.answer == "quoted":
            return _begun_quotation(said)
        return diarized.words(said) if self.answer == "diarized" else said

    def whole(self, said: str) -> str:
        """The transcript in all that was said; it begins with what was `shown`."""
        if self.answer == "language-tag":
            begun = _BEGUN_TAG.search(said)
            return _without_tags(said[: begun.start()] if begun and self._is_tag(said, begun) else said)
        if self.answer == "quoted":
            read, shown = _quotation(said), self.shown(said)
            return (
                read if read.startswith(shown) else shown
            )  # of what was cut short, the first mark was taken off
        return diarized.words(said) if self.answer == "diarized" else said

    def opening(self, said: str) -> int:
        """Characters of what stands before the transcript; 0: nothing does; -1: this cannot be told yet."""
        if self.answer == "language-tag":
            start = len(said) - len(said.lstrip())
            if (tag := _TAG.match(said, start)) is not None:
                return tag.end()
            begun = _BEGUN_TAG.search(said)
            return -1 if start == len(said) or (begun and begun.start() == start) else 0
        if self.answer == "diarized":
            return diarized.opening(said)
        return _framed(said) if self.answer == "quoted" else 0

    def turns(self, said: str, t0: float, t1: float) -> tuple[Turn, ...]:
        """Who said what, of audio between these seconds; none where the model names no speakers."""
        return diarized.turns(said, t0, t1) if self.answer == "diarized" else ()

    def language(self, said: str) -> str | None:
        """Code of the language that an answer names, or that the prompt names; its name, where the code is not known."""
        if self.answer != "language-tag":
            return self.chosen or None
        for tag in _TAG.finditer(said):
            name = (tag.group(1) or "").strip()
            if name.lower() not in ("", "none"):
                return next((one.code for one in self.languages if one.name.lower() == name.lower()), name)
        return None

    def says_nobody_speaks(self, said: str) -> bool:
        """Whether an answer without a transcript is the model's word for silence: `language None<asr_text>`."""
        tagged = self.answer == "language-tag" and _TAG.search(said) is not None
        return tagged and self.language(said) is None and not self.whole(said).strip()

    def is_stuck(self, said: str) -> bool:
        """Whether nothing but tags is said, over and over."""
        if self.answer != "language-tag" or len(_TAG.findall(said)) < _TOO_MANY_TAGS:
            return False
        return not self.shown(said).strip()

    def _is_tag(self, said: str, begun: re.Match[str]) -> bool:
        """Whether the end of a whole answer is a tag that was cut short, and not words."""
        if "<" in begun.group():
            return True
        if _without_tags(said[: begun.start()]).strip():
            return False
        tagged = _TAG.search(said) is not None
        return self.language(said) is None if tagged else _TAG_ALONE.fullmatch(begun.group()) is not None


class AnswerStream:
    """An answer as it is being said, piece by piece.

    Attributes:
        said: so far.
    """

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._read = ""
        self._opening = reader.opening("")
        self.said = ""

    @property
    def opened(self) -> bool:
        """The transcript has begun, or comes next."""
        return self._opening >= 0

    @property
    def stuck(self) -> bool:
        """See `AnswerReader.is_stuck`."""
        return self._reader.is_stuck(self.said)

    def feed(self, piece: str) -> str:
        """The next piece → what it adds to the transcript."""
        self.said += piece
        if self._opening < 0:
            self._opening = self._reader.opening(self.said)
        return self._fresh(self._reader.shown(self.said))

    def finish(self, said: str) -> str:
        """All that was said, if it goes on from what was fed → the rest of the transcript."""
        if said.startswith(self.said):
            self.said = said
        return self._fresh(self._reader.whole(self.said))

    def _fresh(self, now: str) -> str:
        if not now.startswith(self._read):
            return ""
        fresh, self._read = now[len(self._read) :], now
        return fresh


def _without_tags(text: str) -> str:
    """Tags elsewhere are a loop's, or a change of language: a space is left of them, where there was none."""

    def gap(tag: re.Match[str]) -> str:
        at = tag.start()
        return "" if at == 0 or text[at - 1].isspace() else " "

    return _TAG.sub(gap, text)


def _framed(said: str) -> int:
    """As `AnswerReader.opening`, of a quotation."""
    start = len(said) - len(said.lstrip())
    body = said[start:]
    if any(frame.startswith(body) for frame in _FRAMES):
        return -1
    frame = next((one for one in _FRAMES if body.startswith(one)), "")
    if not frame:
        return 0
    rest = body[len(frame) :].lstrip()
    return len(said) - len(rest) + (rest[0] in _QUOTES) if rest else -1


def _begun_quotation(said: str) -> str:
    """As much of a quotation as has surely been said: a full stop or a mark at its end may be none of it."""
    opening = _framed(said)
    body = said[max(0, opening) :].lstrip() if opening >= 0 else ""
    mark = said[opening - 1] if opening > 0 else body[:1]
    if mark not in _QUOTES or not mark:
        return re.sub(r"\s*\.?\s*\Z", "", body)
    return re.sub(rf"\s*(?:{mark}\s*)?(?:\.\s*)?\Z", "", body if opening else body[1:].lstrip())


def _quotation(said: str) -> str:
    """Audio Flamingo 3 says: The spoken content of the audio is "...". (`AudioFlamingo3Processor.decode`, `strip_prefix`)."""
    text = said.strip()
    frame = next((one for one in _FRAMES if text.startswith(one)), "")
    text = text.removeprefix(frame).strip().removesuffix(".").strip()
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in _QUOTES
    return text[1:-1].strip() if quoted else text
