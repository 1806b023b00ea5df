"""What letters say in place of the decoder, and who is refused it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prunella.device_runtime.base.errors import EngineError, UsageError
from prunella.device_runtime.decoding.effort import Letters, deficits
from prunella.device_runtime.transcript import DecodeOptions


def heard(classes: str, alphabet: str, likely: float = 0.9) -> np.ndarray:
    """Frames that hear these letters, "_" for none."""
    count = 1 + len(alphabet)
    frames = np.full((len(classes), count), (1 - likely) / (count - 1))
    for frame, letter in zip(frames, classes, strict=True):
        frame[0 if letter == "_" else 1 + alphabet.index(letter)] = likely
    return np.log(frames).astype(np.float32)


@pytest.mark.parametrize(
    ("frames", "text"),
    [("gg__oo_", "go"), ("_g_o_o", "goo"), (" __go_ _ ____o ", "go o"), ("____", ""), ("", "")],
)
def test_repeats_are_joined_and_words_have_one_space(tokenizer, frames: str, text: str) -> None:
    read = Letters(" go", tokenizer).read(heard(frames, " go"))
    assert read.text == text
    assert tokenizer.decode(list(read.tokens)).strip() == text


def test_the_least_sure_frame_counts(tokenizer) -> None:
    sure, torn = heard("g_o_", " go", 0.999), heard("g", " go", 0.25)
    assert Letters(" go", tokenizer).read(sure).entropy < 0.02
    mixed = Letters(" go", tokenizer).read(np.concatenate([sure, torn, sure]))
    assert mixed.entropy == pytest.approx(np.log(4), abs=1e-5)


def test_a_deficit_is_to_the_likeliest_and_ends_are_one() -> None:
    rows = np.array([[0, 4, 1, 2], [7, 1, 1, 5]], np.float32)
    first = np.array([0, 1, 3, 0], np.float32)
    assert deficits(first, rows, (1, 3), [0, 3]) == [2.0, 2.0, 0.0]
    assert deficits(first, rows, (1, 3), [3]) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_model_without_letters_names_the_command_that_trains_them(scripted, effort) -> None:
    transcriber = scripted("go forward")
    with pytest.raises(EngineError, match="--stage ctc-head"):
        transcriber.with_options(effort=effort)
    assert transcriber.with_options(effort="exact") is transcriber
    # A bundle that asks for it is not unusable there.
    lax = scripted("go forward", options=DecodeOptions(effort=effort))
    assert lax.transcribe(np.random.default_rng(0).normal(0, 0.1, 16_000)).text == "go forward"


def test_letters_are_no_text_where_capitals_are_written(scripted) -> None:
    transcriber = scripted("Go forward.")
    transcriber.engine.has_ctc_head = True
    cased = replace(transcriber, prompt=replace(transcriber.prompt, text_style="as-is"))
    with pytest.raises(UsageError, match="capitals"):
        cased.with_options(effort="fast")
    with pytest.raises(UsageError, match="no effort 'lazy'"):
        cased.with_options(effort="lazy")
