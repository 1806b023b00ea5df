"""What is kept of every clip of an evaluation, and the file that lets an evaluation go on where it stopped."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from prunella.device_runtime.base.files import sha256
from prunella.device_runtime.base.outputs import check_output_file
from prunella.device_runtime.transcript import Transcript
from prunella.evaluation.manifest import Utterance
from prunella.evaluation.word_errors import ClipErrors, count_errors


@dataclass(frozen=True)
class ClipRecord:
    """One clip as one system heard it. Times are seconds of compute; `nll` (nats) is None where nothing was scored."""

    id: str
    source: str
    reference: str
    hypothesis: str
    finish_reason: str
    audio_seconds: float
    compute_seconds: float
    decode_seconds: float
    tokens: int
    scored: bool  # whether a score was asked for; it may still be None (audio too long to score in one piece)
    nll: float | None
    scored_tokens: int
    errors: ClipErrors

    def to_json(self) -> dict[str, Any]:
        """Every field; the errors are for the reader and are counted again when read back."""
        return asdict(self)


def clip_record(
    utterance: Utterance,
    transcript: Transcript,
    *,
    seconds: float,
    scored: bool,
    score: tuple[float, int] | None,
) -> ClipRecord:
    """The record of one transcript; `seconds` is the audio's true length, `score` (sum of nats, tokens)."""
    timings = transcript.timings
    return ClipRecord(
        id=utterance.id,
        source=utterance.source,
        reference=utterance.text,
        hypothesis=transcript.text,
        finish_reason=transcript.finish_reason,
        audio_seconds=seconds,
        compute_seconds=timings.total,
        decode_seconds=timings.decode,
        tokens=len(transcript.tokens),
        scored=scored,
        nll=None if score is None else float(score[0]),
        scored_tokens=0 if score is None else int(score[1]),
        errors=count_errors(utterance.text, transcript.text),
    )


_BEGINNING = b'{"system": '  # of every line that `append` writes


def check_records(path: str | Path) -> Path:
    """Where the records will really be written, links followed.

    Raises:
        UsageError: what is there is no file of records, or nothing can be written there.
    """

    def ours(found: Path) -> bool:
        if not found.is_file():  # a pipe, or /dev/null
            return True
        with found.open("rb") as file:
            beginning = file.read(1 << 16).lstrip()
        return beginning.startswith(_BEGINNING) or not beginning

    return check_output_file(path, "file of records", ours)


class RecordsFile:
    """A JSONL file of clip records, appended line by line; one file may hold several systems and manifests.

    A line is found again by the system's fingerprint and a digest of the manifest's row and its audio, so that a changed
    transcript, another recording or a rebuilt bundle is evaluated anew. A line cut short by a kill is ignored.
    """

    def __init__(self, path: str | Path, system: str, fingerprint: str) -> None:
        """Read what is there for this system.

        Args:
            path: the file; need not exist.
            system: name, for the reader of the file.
            fingerprint: identity of the system and its options.

        Raises:
            UsageError: what is there is no file of records: nothing is appended to it.
        """
        self.path = check_records(path)
        self._system = system
        self._fingerprint = fingerprint
        self._known: dict[str, ClipRecord] = {}
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        self._torn = bool(text) and not text.endswith("\n")
        damaged = 0
        for line in filter(str.strip, text.split("\n")):
            try:
                row = json.loads(line)
                if row["fingerprint"] == fingerprint:
                    self._known[row["row"]] = _from_json(row)
            except (ValueError, KeyError, TypeError):
                damaged += 1
        if damaged:
            sys.stderr.write(f"{self.path}: {damaged} unreadable line(s) ignored\n")

    def find(self, utterance: Utterance) -> ClipRecord | None:
        """The record of this row, if there is one."""
        return self._known.get(_row_digest(utterance))

    def append(self, utterance: Utterance, record: ClipRecord) -> None:
        """Add one line, written and flushed at once."""
        row = _row_digest(utterance)
        head = {"system": self._system, "fingerprint": self._fingerprint, "row": row}
        line = json.dumps({**head, **record.to_json()}, ensure_ascii=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Half a character, in a name of another encoding, becomes its JSON escape.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            # After a torn line a line of its own is begun, so that only the torn one is lost.
            file.write(("\n" if self._torn else "") + line + "\n")
        self._torn = False
        self._known[row] = record


def _row_digest(utterance: Utterance) -> str:
    seen = utterance.audio.stat()
    content = _content(utterance.audio, seen.st_size, seen.st_mtime_ns)
    key = json.dumps([utterance.id, utterance.text, utterance.duration, utterance.source, content])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=64)  # segments of a file, and looking for a row before adding it
def _content(audio: Path, _size: int, _changed: int) -> str:
    return sha256(audio)


def _from_json(row: dict[str, Any]) -> ClipRecord:
    texts = row["reference"], row["hypothesis"]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text of a record is none")
    return msgspec.convert({**row, "errors": asdict(count_errors(*texts))}, ClipRecord)
