"""How a transcript is read out of what a model says around it, while it is being said and at the end."""

from __future__ import annotations

import re
from collections.abc import Callable

from prunella.device_runtime.decoding.template_text import strip_template

_MARKER = "<asr_text>"
_TAG = "language "
_FRAMES = (
    "The spoken content of the audio is",
    "The transcription of the audio is",
    "The content of the input audio is",
)
_QUOTES = "'\""
_BEGUN_TAG = re.compile(r"language(?: [^<]{0,40})?(?:<[a-z_]*)?$")


def read_answer(text: str, answer: str, *, done: bool = True) -> str:
    """The transcript in a model's answer, or in as much of it as there is.

    Args:
        text: what the model has said so far, special tokens left out.
        answer: one of `READERS`, as `PromptSpec.answer` names it.
        done: whether that is all.
    """
    return strip_template(READERS[answer](text, done))


def write_answer(text: str, answer: str, language: str = "English") -> str:
    """Inverse of `read_answer`: what a model of this kind says of a transcript (`language`: its English name)."""
    if answer == "quoted":
        return f'{_FRAMES[0]} "{text}".'
    return f"{_TAG}{language}{_MARKER}{text}" if answer == "language-tag" else text


def answered_language(text: str, answer: str) -> str | None:
    """English name of the language that an answer names; None: it names none."""
    if answer != "language-tag" or _MARKER not in text:
        return None
    name = text.partition(_MARKER)[0].strip().removeprefix(_TAG).strip()
    return None if name.lower() in ("", "none") else name


def _as_is(text: str, done: bool) -> str:
    return text


def _behind_language_tag(text: str, done: bool) -> str:
    """Qwen3-ASR says "language English<asr_text>..." (`Qwen3ASRProcessor.parse_output`)."""
    tag, marker, transcript = text.partition(_MARKER)
    if marker:
        return transcript
    begun = tag.lstrip()
    return "" if _TAG.startswith(begun) or _BEGUN_TAG.fullmatch(begun) else text


def _quoted(text: str, done: bool) -> str:
    """Audio Flamingo 3 says: The spoken content of the audio is "...". (`AudioFlamingo3Processor.decode`, `strip_prefix`)."""
    said = text.strip()
    if not done and any(frame.startswith(said) for frame in _FRAMES):
        return ""
    frame = next((one for one in _FRAMES if said.startswith(one)), "")
    said = said.removeprefix(frame).strip()
    said = said.removesuffix(".").strip()
    if len(said) >= 2 and said[0] == said[-1] and said[0] in _QUOTES:
        return said[1:-1].strip()
    # A quotation that has only begun.
    return said if done or said[:1] not in tuple(_QUOTES) else said[1:].strip()


READERS: dict[str, Callable[[str, bool], str]] = {
    "as-is": _as_is,
    "language-tag": _behind_language_tag,
    "quoted": _quoted,
}
