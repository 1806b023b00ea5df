"""Speech manifests in the form of the Open ASR Leaderboard: one JSON object a line, audio beside it."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.characters import has_half_characters
from prunella.device_runtime.base.errors import AudioError, ManifestError, UsageError
from prunella.device_runtime.base.suggestions import did_you_mean, path_hint
from prunella.device_runtime.sound.audio import load_audio
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE

UNKNOWN_SOURCE = "unknown"
_SHOWN_PROBLEMS = 10
_SHOWN_CHARACTERS = 400  # of one of them
_LONGEST = 1e9  # seconds; what lies beyond is no recording, and no number of samples
_NOT_SAID = re.compile(r"\[[^\]]*\]|<[^>]*>|\([^)]*\)")  # [noise], <unk>, (laughs)
_ROUNDED = 0.5  # seconds that a segment may end behind its file: lengths are rounded


@dataclass(frozen=True)
class Utterance:
    """One clip and what is said in it.

    Attributes:
        id: its `audio_filepath` as the manifest writes it; a segment's with `@offset+duration` behind it.
        audio: the file.
        duration: seconds, as the manifest says.
        text: what is said.
        offset: seconds into the file where a segment of it begins; None: the clip is the whole file.
        language: that is spoken, as a code (ISO 639-1: "de") or an English name; "": the manifest does not say.
    """

    id: str
    audio: Path
    duration: float
    text: str
    source: str = UNKNOWN_SOURCE
    speaker: str = ""
    offset: float | None = None
    language: str = ""

    def load(self) -> npt.NDArray[np.float32]:
        """(n,) float32 at 16 kHz: the file, or the segment of it.

        Raises:
            AudioError: as `load_audio`, or the segment goes beyond the file's end or holds no sample.
        """
        samples = load_audio(self.audio)
        if self.offset is None:
            return samples
        start = round(self.offset * SAMPLE_RATE)
        if start >= len(samples):
            raise AudioError(
                f"{self.id} begins behind the end of its file ({len(samples) / SAMPLE_RATE:.2f} s): correct the manifest"
            )
        stop = round((self.offset + self.duration) * SAMPLE_RATE)
        if stop > len(samples) + _ROUNDED * SAMPLE_RATE:
            raise AudioError(
                f"{self.id} ends behind the end of its file ({len(samples) / SAMPLE_RATE:.2f} s): correct the manifest"
            )
        segment = samples[start:stop]
        if not len(segment):
            raise AudioError(f"{self.id} is shorter than one sample: correct the manifest")
        return segment.copy()


@dataclass(frozen=True)
class SpeechManifest:
    """The usable rows of a manifest, in file order, and what was wrong with the others (`file:line: why`)."""

    path: Path
    utterances: tuple[Utterance, ...]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, in order of appearance."""
        return tuple(dict.fromkeys(utterance.source for utterance in self.utterances))

    @property
    def seconds(self) -> float:
        """Seconds of audio in all."""
        return sum(utterance.duration for utterance in self.utterances)

    def only(self, sources: Collection[str]) -> SpeechManifest:
        """Rows of the named sources.

        Raises:
            UsageError: a source that no row has.
        """
        for source in sources:
            if source not in self.sources:
                raise UsageError(f"{self.path} has no source '{source}': it has {', '.join(self.sources)}")
        return self._keep([u for u in self.utterances if u.source in sources])

    def clips(self, names: Collection[str]) -> SpeechManifest:
        """Rows of these clips, each by its id or by its file's name, with or without its suffix.

        Raises:
            UsageError: a clip that no row has.
        """
        called = [{one.id, one.audio.name, one.audio.stem} for one in self.utterances]
        for name in names:
            if not any(name in own for own in called):
                hint = did_you_mean(name, dict.fromkeys(one.audio.stem for one in self.utterances))
                raise UsageError(f"{self.path} has no clip '{name}'{f': {hint}' if hint else ''}")
        return self._keep([one for one, own in zip(self.utterances, called, strict=True) if own & set(names)])

    def at_most(self, seconds: float) -> SpeechManifest:
        """Rows whose audio is no longer than `seconds`."""
        return self._keep([u for u in self.utterances if u.duration <= seconds])

    def in_language(self, language: str) -> SpeechManifest:
        """Rows that name no language are in this one; "" leaves them as they are."""
        return self._keep([replace(u, language=u.language or language) for u in self.utterances])

    def limit(self, per_source: int, *, seed: int | None = None) -> SpeechManifest:
        """`per_source` rows of every source, in file order: the first, or drawn at random where a seed is given."""
        rows: dict[str, list[int]] = {}
        for i, utterance in enumerate(self.utterances):
            rows.setdefault(utterance.source, []).append(i)
        if seed is not None:
            for source, indices in rows.items():
                random.Random(f"{seed} {source}").shuffle(indices)  # noqa: S311
        kept = sorted(i for indices in rows.values() for i in indices[:per_source])
        return self._keep([self.utterances[i] for i in kept])

    def sample(self, count: int, *, seed: int = 0) -> SpeechManifest:
        """`count` rows drawn without replacement (all, if there are fewer), in file order; the seed decides which.

        Raises:
            UsageError: fewer than none.
        """
        if count < 0:
            raise UsageError(f"a sample of {count} clips leaves nothing: give 1 or more")
        if count >= len(self.utterances):
            return self
        chosen = random.Random(seed).sample(range(len(self.utterances)), count)  # noqa: S311
        return self._keep([self.utterances[i] for i in sorted(chosen)])

    def select(
        self,
        *,
        sources: Collection[str] = (),
        clips: Collection[str] = (),
        max_seconds: float | None = None,
        limit: int | None = None,
        seed: int | None = None,
    ) -> SpeechManifest:
        """What `--source`, `--clip`, `--max-seconds` and `--limit` (with `--seed`) ask for, in this order.

        Raises:
            UsageError: an unknown source or clip, or a number that is not positive.
            ManifestError: nothing is left.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"a limit of {limit} clips leaves nothing: give 1 or more")
        if max_seconds is not None and not max_seconds > 0:
            raise UsageError(f"clips of at most {max_seconds} s leave nothing: give a positive number")
        chosen = self.only(sources) if sources else self
        if clips:
            chosen = chosen.clips(clips)
        if max_seconds is not None:
            chosen = chosen.at_most(max_seconds)
        if limit is not None:
            chosen = chosen.limit(limit, seed=seed)
        if not chosen.utterances:
            shortest = min(u.duration for u in self.utterances)
            raise ManifestError(
                f"no clip of {self.path} is left after the selection (its shortest takes {shortest:.1f} s): raise --max-seconds"
            )
        return chosen

    def _keep(self, utterances: list[Utterance]) -> SpeechManifest:
        return replace(self, utterances=tuple(utterances))


def read_manifest(path: str | Path, *, report: TextIO | None = None) -> SpeechManifest:
    """Read a JSONL manifest; rows that cannot be used are reported and skipped.

    A row needs `audio_filepath` (relative to the manifest's folder), `duration` (seconds) and `text`; `source`,
    `speaker` and `language` (a code such as "de") are optional, other keys are ignored. With `offset` (seconds) the clip is that segment of the file.

    Args:
        path: the manifest.
        report: where problems are written (default stderr).

    Raises:
        ManifestError: unreadable, or no usable row.
    """
    path = Path(path)
    form = 'one {"audio_filepath": ..., "duration": ..., "text": ...} a line'
    if not path.is_file():
        state = "is not a file" if path.exists() else f"does not exist{path_hint(path)}"
        raise ManifestError(f"manifest {path} {state}: give a JSONL file, {form}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"manifest {path} is not UTF-8 text: give a JSONL file, {form}") from error
    utterances: list[Utterance] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            utterances.append(_parse(line, path.parent))
        except ValueError as error:
            problems.append(f"{path}:{number}: {_one_line(str(error))}")
    if not utterances:
        first = f" (first: {problems[0]})" if problems else ""
        raise ManifestError(f"manifest {path} has no usable row{first}: write {form}")
    stream = report if report is not None else sys.stderr
    for problem in problems[:_SHOWN_PROBLEMS]:
        stream.write(f"skipped {problem}\n")
    if len(problems) > _SHOWN_PROBLEMS:
        stream.write(f"skipped {len(problems) - _SHOWN_PROBLEMS} more rows of {path}\n")
    return SpeechManifest(path, tuple(utterances), tuple(problems))


def _one_line(text: str) -> str:
    """Without the line breaks of a file's name or text, and no longer than anybody reads."""
    line = "\\n".join(text.splitlines())
    half = _SHOWN_CHARACTERS // 2  # the beginning and the end: either may say what is wrong
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


def _seconds(value: object) -> float:
    """What a row gives as a number; NaN if it is none, or larger than any recording."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LONGEST
    return float(value) if number else math.nan  # type: ignore[arg-type]


def _parse(line: str, folder: Path) -> Utterance:
    """One row.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    missing = [key for key in ("audio_filepath", "duration", "text") if key not in row]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    name, duration, text = row["audio_filepath"], _seconds(row["duration"]), row["text"]
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError("audio_filepath is not a file name")
    if not duration > 0:
        raise ValueError(f"duration {row['duration']!r} is not a positive number of seconds")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("text is empty")
    if not any(map(str.isalnum, _NOT_SAID.sub("", text))):
        raise ValueError(f"text {text.strip()!r} has no words")
    offset = None if row.get("offset") is None else _seconds(row["offset"])
    if offset is not None and not offset >= 0:
        raise ValueError(f"offset {row['offset']!r} is not a number of seconds")
    audio = folder / name
    try:
        found = audio.is_file()
    except OSError as error:  # a name that is too long
        raise ValueError(f"{audio} cannot be opened ({error.strerror})") from error
    if not found:
        raise ValueError(f"{audio} {'is no file' if audio.exists() else 'does not exist'}")
    source, speaker, language = row.get("source"), row.get("speaker"), row.get("language") or ""
    if not isinstance(language, str):
        raise ValueError(f'language {language!r} is no code such as "de"')
    for key, value in (("text", text), ("source", source), ("speaker", speaker), ("language", language)):
        if isinstance(value, str) and has_half_characters(value):
            raise ValueError(f"{key} holds half of a character (a surrogate): write it in UTF-8")
    return Utterance(
        id=name if offset is None else f"{name}@{offset:g}+{duration:g}",
        audio=audio,
        duration=duration,
        text=text.strip(),
        source=str(source) if source else UNKNOWN_SOURCE,
        speaker="" if speaker is None else str(speaker),
        offset=offset,
        language=language.strip(),
    )
