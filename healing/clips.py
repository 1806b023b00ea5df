"""Where training speech comes from: manifests and Hugging Face datasets, as one list of clips."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import soundfile

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError, ManifestError, UsageError
from prunella.device_runtime.sound.audio import load_audio
from prunella.evaluation.manifest import SpeechManifest, read_manifest
from prunella.healing.augment import LONGEST_SECONDS
from prunella.speech_llm.ctc_head import CtcFrames, letter_classes
from prunella.speech_llm.model import SpeechLLM

TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text")
LANGUAGE_COLUMNS = ("language", "locale", "lang")
_SHOWN = 10


@dataclass(frozen=True)
class Clip:
    """One recording and its text. `read()` gives (n,) float32 at 16 kHz, or raises `AudioError`.

    `where` is for people (`manifest:line` or `dataset:row`), `key` identifies the recording in caches, `language` is a code
    or an English name, "" where nobody says.
    """

    key: str
    where: str
    seconds: float
    text: str
    read: Callable[[], Float32]
    language: str = ""


@dataclass(frozen=True)
class TokenClip:
    """A clip whose text is tokenised as the model writes.

    Attributes:
        clip: it.
        tokens: of the answer; ends with the end token.
        said: tokens of what is said, without what the model puts around it and the end; of a CTC head classes of letters.
    """

    clip: Clip
    tokens: tuple[int, ...]
    said: tuple[int, ...]


def open_speech(
    sources: Iterable[str | Path], *, language: str = "", report: TextIO | None = None
) -> list[Clip]:
    """Clips of manifests and of `hf:NAME:SPLIT` datasets, in order; rows that cannot be used are reported and skipped.

    Args:
        sources: their names.
        language: of clips whose source names none.
        report: default stderr.

    Raises:
        ManifestError: a source that cannot be read or has no usable row.
    """
    clips: list[Clip] = []
    for source in sources:
        if str(source).startswith("hf:"):
            clips += dataset_clips(str(source), report=report)
        else:
            clips += manifest_clips(read_manifest(source, report=report))
    return [replace(clip, language=clip.language or language) for clip in clips]


def manifest_clips(manifest: SpeechManifest) -> list[Clip]:
    """Every usable row of a manifest as a clip."""
    numbers = _line_numbers(manifest.path)
    return [
        Clip(
            key=f"{row.audio.resolve()}:{row.duration}" + ("" if row.offset is None else f"@{row.offset}"),
            where=f"{manifest.path}:{numbers.get(row.id, 0)}"
            if row.offset is None
            else f"{manifest.path}: {row.id}",
            seconds=row.duration,
            text=row.text,
            read=row.load,
            language=row.language,
        )
        for row in manifest.utterances
    ]


def dataset_clips(source: str, *, report: TextIO | None = None) -> list[Clip]:
    """Clips of `hf:NAME:SPLIT` (or `hf:NAME:CONFIG:SPLIT`), NAME a Hub id or a local dataset folder.

    Raises:
        ManifestError: the dataset cannot be loaded, or has no audio or text column.
        UsageError: not of this form.
    """
    fields = source.removeprefix("hf:").rsplit(":", 2)
    if len(fields) < 2 or not all(fields):
        raise UsageError(f"no dataset '{source}': write hf:NAME:SPLIT, or hf:NAME:CONFIG:SPLIT")
    name, *config, split = fields
    data = _load_dataset(name, config[0] if config else None, split)
    audio = next((key for key, kind in data.features.items() if type(kind).__name__ == "Audio"), None)
    text = next((key for key in TEXT_COLUMNS if key in data.features), None)
    spoken = next(
        (key for key in LANGUAGE_COLUMNS if getattr(data.features.get(key), "dtype", "") == "string"), None
    )
    if audio is None or text is None:
        raise ManifestError(
            f"{source} has the columns {', '.join(data.features)}: it needs an audio column and one of {', '.join(TEXT_COLUMNS)}"
        )
    from datasets import Audio

    # Undecoded, so that our own reader (soundfile, soxr) does it and torchcodec is not needed.
    data = data.cast_column(audio, Audio(decode=False))
    clips, problems = [], []
    for number, row in enumerate(data):
        where = f"{source}:{number}"
        try:
            seconds = soundfile.info(_audio_file(row[audio])).duration
            if not str(row[text] or "").strip():
                raise ValueError("text is empty")
        except (ValueError, OSError, TypeError, soundfile.SoundFileError) as error:
            problems.append(f"{where}: {error}")
            continue
        clips.append(
            Clip(
                where,
                where,
                seconds,
                str(row[text]),
                partial(_read_row, data, number, audio),
                str(row[spoken] or "") if spoken else "",
            )
        )
    _report(problems, report)
    if not clips:
        raise ManifestError(f"{source} has no usable row{f' (first: {problems[0]})' if problems else ''}")
    return clips


def tokenize(
    model: SpeechLLM,
    clips: Sequence[Clip],
    stage: str = "transcript",
    *,
    slowest: float = 0.0,
    report: TextIO | None = None,
) -> list[TokenClip]:
    """Tokenise the transcripts; clips that cannot be learned from are reported and left out.

    Args:
        model: its tokenizer, text style, languages, rates and letters.
        clips: any number.
        stage: of `HealingPlan`. Both CTC stages also leave out clips with fewer audio steps than they need; that of the
            head takes letters for tokens.
        slowest: share by which a clip may be sped up, which shortens it.
        report: default stderr.

    Raises:
        ManifestError: nothing is left.
    """
    eos = model.prompt.eos_ids[0]
    spec = model.config.audio
    clips, problems = _in_known_languages(model, clips)
    step: float = spec.samples_per_token
    if stage == "ctc-head":
        alphabet = model.config.ctc_alphabet
        ids = said = [letter_classes(clip.text, alphabet) for clip in clips]
        step = CtcFrames.of(model.config).samples
    else:
        ids = said = _token_ids(model, [model.said(clip.text) for clip in clips])
        if model.answer("x") != model.said("x"):
            answers = [model.answer(clip.text, clip.language, seconds=clip.seconds) for clip in clips]
            ids = _token_ids(model, answers)
    kept = []
    for clip, tokens, spoken in zip(clips, ids, said, strict=True):
        steps = int(clip.seconds / (1 + slowest) * spec.sampling_rate / step)
        needed = len(spoken) + sum(a == b for a, b in itertools.pairwise(spoken))
        if not spoken:
            problems.append(f"{clip.where}: nothing is left of the text in the model's style")
        elif clip.seconds > LONGEST_SECONDS - 0.2:
            problems.append(
                f"{clip.where}: {clip.seconds:.1f} s of audio, the model takes less than 30 s: split it"
            )
        elif stage != "transcript" and steps < needed:
            problems.append(f"{clip.where}: {steps} audio steps are too few for {needed} tokens of text")
        else:
            kept.append(TokenClip(clip, (*tokens, eos), tuple(spoken)))
    _report(problems, report)
    if not kept:
        raise ManifestError(
            f"no clip can be used{f' (first: {problems[0]})' if problems else ''}: give other speech"
        )
    return kept


def _token_ids(model: SpeechLLM, texts: Sequence[str]) -> list[list[int]]:
    return model.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []


def _in_known_languages(model: SpeechLLM, clips: Sequence[Clip]) -> tuple[list[Clip], list[str]]:
    """Clips whose language the model's prompt has, and why not the others."""
    why: dict[str, str] = {}
    for language in dict.fromkeys(clip.language for clip in clips):
        try:
            model.prompt_for(language)
        except UsageError as error:
            why[language] = str(error)
    kept = [clip for clip in clips if clip.language not in why]
    return kept, [f"{clip.where}: {why[clip.language]}" for clip in clips if clip.language in why]


def _load_dataset(name: str, config: str | None, split: str) -> Any:
    from datasets import load_dataset, load_from_disk

    try:
        if (Path(name) / "dataset_dict.json").is_file():
            return load_from_disk(name)[split]
        if (Path(name) / "state.json").is_file():
            return load_from_disk(name)
        return load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises a dozen classes: no network, no such id, split or config
        cause: BaseException = error
        while cause.__cause__ is not None:  # "an error occurred while generating the dataset" helps nobody
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:200]
        raise ManifestError(f"cannot load the dataset '{name}', split '{split}': {reason}") from error


def _read_row(data: Any, number: int, column: str) -> Float32:
    return load_audio(_audio_file(data[number][column]))


def _audio_file(value: dict[str, Any]) -> Any:
    if value.get("bytes") is not None:
        return io.BytesIO(value["bytes"])
    if value.get("path"):
        return value["path"]
    raise AudioError("a row of the dataset has no audio")


def _line_numbers(path: Path) -> dict[str, int]:
    """`audio_filepath` → line; a cheap scan, the rows are known to be good."""
    numbers: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        try:
            numbers.setdefault(json.loads(line)["audio_filepath"], number)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return numbers


def _report(problems: Sequence[str], report: TextIO | None) -> None:
    stream = report if report is not None else sys.stderr
    for problem in problems[:_SHOWN]:
        stream.write(f"skipped {problem}\n")
    if len(problems) > _SHOWN:
        stream.write(f"skipped {len(problems) - _SHOWN} more clips\n")
