"""The transcript in what a model says: each reader against what transformers' processor of the family makes of it."""

from __future__ import annotations

import itertools

import pytest

from prunella.device_runtime.decoding.answer import READERS, read_answer, write_answer

FRAMED = [
    'The spoken content of the audio is "Hello, world.".',
    "The spoken content of the audio is 'Hello, it's me'.",
    "The transcription of the audio is Hello there",
    'The content of the input audio is "Hello."',
    '  The spoken content of the audio is  "one" and "two" .',
    'The spoken content of the audio is "He said "yes"".',
    "The spoken content of the audio is",
    "The spoken content of the audio isolated them.",
    'The spoken content of the audio is ".',
    '"The quick brown fox."',
    '"Half of it',
    "'",
    '"".',
    ".",
    "",
    "The",
    "The weather is fine.",
    "Hello. World...",
]


def test_a_frame_is_taken_off_as_by_the_processor():
    processing = pytest.importorskip("transformers.models.audioflamingo3.processing_audioflamingo3")
    strip = processing.AudioFlamingo3Processor._strip_assistant_prefix_and_quotes  # noqa: SLF001 - what `decode` does
    for text in FRAMED:
        assert read_answer(text, "quoted") == strip(None, text), text


@pytest.mark.parametrize("text", FRAMED)
def test_neither_frame_nor_quotes_are_shown_while_they_are_said(text):
    for count in range(len(text)):
        shown = read_answer(text[:count], "quoted", done=False)
        assert not shown.startswith(("'", '"', "The spo", "The t", "The c"))
        assert not text.startswith("The ") or "audio is" not in shown


def test_what_is_shown_grows():
    said = 'The spoken content of the audio is "Hello. This is it.".'
    shown = [read_answer(said[:count], "quoted", done=False) for count in range(len(said) + 1)]
    assert all(after.startswith(before) for before, after in itertools.pairwise(shown))
    assert shown[-1] == read_answer(said, "quoted") == "Hello. This is it."


@pytest.mark.parametrize("answer", READERS)
@pytest.mark.parametrize("text", ["Hello, world.", 'He said "yes"', '"Yes"', "", "it's", "'tis 'so'"])
def test_what_is_taught_is_read_back(answer, text):
    assert read_answer(write_answer(text, answer), answer) == text
