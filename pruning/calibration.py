"""Calibration data: what the map, the choice of block and the bridge are measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.suggestions import path_hint
from prunella.evaluation.manifest import SpeechManifest, Utterance, read_manifest
from prunella.speech_llm.batches import DecoderBatch, batches_by_length, speech_example, text_batch
from prunella.speech_llm.load import TextLLM
from prunella.speech_llm.model import SpeechLLM

HELD_OUT_SHARE = 0.2
MAX_HELD_OUT = 40  # clips; more costs time and hardly changes a choice
_CLIPS_AT_ONCE = 32  # read, encoded and forgotten together
_TEXT_TOKENS = 512  # longest piece of a text


class Batches:
    """Batches made anew at every pass, so that memory does not grow with the amount of calibration."""

    def __init__(self, make: Callable[[], Iterator[DecoderBatch]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[DecoderBatch]:
        return self._make()


@dataclass(frozen=True)
class Calibration:
    """`fit` is what sums are taken over; `held_out` is what choices are judged on, kept in memory."""

    fit: Iterable[DecoderBatch]
    held_out: Sequence[DecoderBatch]


def speech_batches(model: SpeechLLM, utterances: Sequence[Utterance], max_positions: int = 2_048) -> Batches:
    """Batches of transcribed speech, in order of length."""
    ordered = sorted(utterances, key=lambda utterance: utterance.duration)

    def make() -> Iterator[DecoderBatch]:
        for start in range(0, len(ordered), _CLIPS_AT_ONCE):
            with torch.inference_mode():
                examples = [speech_example(model, one) for one in ordered[start : start + _CLIPS_AT_ONCE]]
                yield from batches_by_length(model, examples, max_positions)

    return Batches(make)


def text_batches(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lines: Iterable[str], size: int = 8
) -> Batches:
    """Batches of plain text, one line a row, cut to 512 tokens."""
    rows = [tokenizer(line)["input_ids"][:_TEXT_TOKENS] for line in lines if line.strip()]
    rows = sorted((row for row in rows if len(row) > 1), key=len)
    if not rows:
        raise UsageError("the text is empty: give a file with one paragraph a line")

    def make() -> Iterator[DecoderBatch]:
        for start in range(0, len(rows), size):
            with torch.inference_mode():
                yield text_batch(decoder, rows[start : start + size])

    return Batches(make)


def speech_calibration(model: SpeechLLM, manifest: SpeechManifest | str | Path) -> Calibration:
    """Split a manifest, or the one at a path: every fifth clip (at most 40) is held out, the rest is fitted on.

    Raises:
        UsageError: fewer than two clips, or what `read_manifest` refuses.
    """
    if not isinstance(manifest, SpeechManifest):
        manifest = read_manifest(manifest)
    clips = manifest.utterances
    if len(clips) < 2:
        raise UsageError(
            f"{manifest.path} has {len(clips)} usable clips: calibration needs at least 2, better 50"
        )
    held = set(range(0, len(clips), round(1 / HELD_OUT_SHARE)))
    held = set(sorted(held)[:MAX_HELD_OUT])
    fit = [clip for index, clip in enumerate(clips) if index not in held]
    return Calibration(
        speech_batches(model, fit), list(speech_batches(model, [clips[index] for index in sorted(held)]))
    )


def text_calibration(model: TextLLM | SpeechLLM, path: Path) -> Calibration:
    """Split a text file alike, by lines.

    Raises:
        UsageError: unreadable, or fewer than two lines.
    """
    lines = read_lines(path)
    if len(lines) < 2:
        raise UsageError(f"{path} has {len(lines)} lines of text: calibration needs at least 2")
    step = round(1 / HELD_OUT_SHARE)
    fit = [line for index, line in enumerate(lines) if index % step]
    return Calibration(
        text_batches(model.decoder, model.tokenizer, fit),
        list(text_batches(model.decoder, model.tokenizer, lines[::step][:MAX_HELD_OUT])),
    )


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file that are not blank.

    Raises:
        UsageError: missing or not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the text {path}{path_hint(path)} ({error}): give a UTF-8 file, one paragraph a line"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
