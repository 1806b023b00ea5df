"""What MOSS-Transcribe-Diarize says: `[0.00][S01]Hello there.[7.56][7.60][S02]Hi.[8.10]`, seconds and speakers around each turn."""

from __future__ import annotations

import re

from prunella.device_runtime.transcript import Turn

OPENING = "[0.00][S01]"
CLOSING = "[00.00]"
_TIME = r"\d+(?::\d+)*(?:\.\d*)?"  # seconds, or with minutes and hours before them
_TAG = re.compile(rf"\[(?:(?P<time>{_TIME})|(?P<speaker>S\d+))\]")
# The end of a text that may yet become a tag.
_BEGUN_TAG = re.compile(rf"\[(?:S\d*|(?:{_TIME}:?)?)\Z")
_OPENING = re.compile(rf"\s*(?:\[{_TIME}\]\s*)?\[S\d+\]\s*")
_BEGUN_OPENING = re.compile(rf"\s*(?:\[{_TIME}\]\s*)?(?:\[(?:S\d*|(?:{_TIME}:?)?))?\Z")


def words(said: str) -> str:
    """What was said so far, by all speakers, without tags; it only grows. What may yet become a tag waits."""
    begun = _BEGUN_TAG.search(said)
    whole = said[: begun.start()] if begun else said
    parts = _TAG.sub("\0", whole).split("\0")
    return " ".join(part for part in map(str.strip, parts) if part)


def opening(said: str) -> int:
    """Characters before the first speaker's words; 0: nothing is; -1: this cannot be told yet."""
    if (found := _OPENING.match(said)) is not None:
        return found.end()
    return -1 if _BEGUN_OPENING.match(said) else 0


def turns(said: str, t0: float, t1: float) -> tuple[Turn, ...]:
    """Who said what when; none where no speaker is named.

    Args:
        said: the answer. A turn ends with the next time, and one without any ends with the audio.
        t0: seconds at which its audio begins: answers count from there.
        t1: and at which it ends; no turn goes beyond.
    """
    begun = _BEGUN_TAG.search(said)
    parts: list[str | None] = list(_TAG.split(said[: begun.start()] if begun else said))
    found: list[Turn] = []
    speaker, begin, clock = "", t0, t0
    for at in range(0, len(parts), 3):  # a text, then a tag's time or speaker
        time, named = parts[at + 1 : at + 3] or (None, None)
        if time is not None:
            clock = min(t0 + _seconds(time), t1)
        text = (parts[at] or "").strip()
        if text and speaker:
            end = t1 if at + 1 == len(parts) else clock
            found.append(Turn(speaker, begin, max(begin, end), text))
        begin, speaker = clock, named or speaker
    return tuple(found)


def tagged(text: str, seconds: float) -> str:
    """A text as one speaker's turn of so many seconds; one that has speakers already stays as it is."""
    if not text or any(tag["speaker"] for tag in _TAG.finditer(text)):
        return text
    return f"{OPENING}{text}[{seconds:.2f}]"


def _seconds(time: str) -> float:
    parts = enumerate(reversed(time.split(":")))
    return sum(float(part) * 60.0**place for place, part in parts)
