"""Whatever a model says around a transcript is never shown, wherever what it says is cut: by properties."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prunella.device_runtime.bundle import Language, PromptSegment, PromptSpec
from prunella.device_runtime.decoding.answer import (
    AnswerReader,
    AnswerStream,
    read_answer,
    write_answer,
)
from prunella.device_runtime.decoding.template_text import strip_template

LANGUAGES = (Language("en", "English", "", ()), Language("zh", "Chinese", "", ()))
TAGGED = AnswerReader("language-tag", LANGUAGES)
_PIECES = st.sampled_from(
    [
        *("language", "language ", "l", "lang", " language", "None", "English", " English", "Haitian Creole"),
        *(
            "<asr_text>",
            "<asr",
            "<",
            "_text>",
            "hello",
            " hello",
            " there",
            ".",
            "\n",
            " ",
            "<|im_end|>",
            "é",
        ),
        *('"', "'", "The spoken content of the audio is", "The transcription of the audio is ", '".', ": "),
    ]
)
ANSWERS = st.lists(_PIECES, max_size=12).map("".join)
KINDS = pytest.mark.parametrize("kind", ["as-is", "language-tag", "quoted"])


def texts(reader: AnswerReader, said: str) -> list[str]:
    """What is shown after each character, and in the end."""
    shown = [strip_template(reader.shown(said[:length])) for length in range(len(said) + 1)]
    return [*shown, strip_template(reader.whole(said))]


@KINDS
@settings(max_examples=400, deadline=None)
@given(said=ANSWERS)
@example(said="language English<asr_text>language None<asr_text>a language lab")
@example(said="a\nlanguage English <asr_text>\nb")
@example(said='The spoken content of the audio is "it is "so"".')
def test_what_is_shown_only_grows(kind, said):
    for before, after in itertools.pairwise(texts(AnswerReader(kind, LANGUAGES), said)):
        assert after.startswith(before)


@settings(max_examples=400, deadline=None)
@given(said=ANSWERS)
@example(said="language English<asr_text>hi language English<asr_text>hi")
def test_no_tag_is_ever_shown(said):
    assert not any("<asr_text>" in text for text in texts(TAGGED, said))


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(["English", "None", "Haitian Creole"]), text=ANSWERS, again=st.booleans())
def test_what_is_shown_of_an_answer_is_always_a_beginning_of_its_transcript(name, text, again):
    tag = f"language {name}<asr_text>"
    said = tag * (1 + again) + text
    whole = strip_template(TAGGED.whole(said))
    assert tag not in whole and all(whole.startswith(shown) for shown in texts(TAGGED, said))
    assert strip_template(TAGGED.shown(tag[:-1])) == ""


@KINDS
@settings(max_examples=200, deadline=None)
@given(said=ANSWERS, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_pieces_add_up_to_the_whole_however_it_is_cut(kind, said, cuts):
    reader = AnswerReader(kind, LANGUAGES)
    ends = sorted({min(cut, len(said)) for cut in cuts})
    stream = AnswerStream(reader)
    pieces = [stream.feed(said[start:stop]) for start, stop in itertools.pairwise([0, *ends])]
    assert "".join([*pieces, stream.finish(said)]) == reader.whole(said)
    assert stream.said == said


@KINDS
@pytest.mark.parametrize("text", ["", "hello there", "language is nice", "The spoken word.", "a < b"])
def test_what_is_written_is_read_back(kind, text):
    said = write_answer(text, kind, "Chinese")
    assert read_answer(said, kind) == strip_template(text)
    reader = AnswerReader(kind, LANGUAGES)
    assert reader.language(said) == ("zh" if kind == "language-tag" else None)
    assert reader.opening(said) == len(said) - len(text) - (2 if kind == "quoted" else 0)


@pytest.mark.parametrize(
    ("said", "text", "language"),
    [
        ("language English<asr_text>go on", "go on", "en"),
        ("language  English \n<asr_text> go on", "go on", "en"),
        ("language Klingon<asr_text>nuqneH", "nuqneH", "Klingon"),
        ("go on", "go on", None),
        ("language is nice", "language is nice", None),
        ("language", "language", None),
        ("language lab", "language lab", None),
        ("languages", "languages", None),
        ("language English", "", None),  # cut short within the tag
        ("language English<asr", "", None),
        ("language English<asr_text>language arts", "language arts", "en"),
        ("language None<asr_text>", "", None),
        ("language None<asr_text>language None<asr_text>", "", None),
        ("language None<asr_text>language None<asr_text>language No", "", None),
        ("language None<asr_text>go on", "go on", None),
        ("language None<asr_text>language English<asr_text>go on", "go on", "en"),
        ("go<asr_text>on", "go on", None),
        ("<asr_text>go on", "go on", None),
    ],
)
def test_a_tag_is_told_from_words(said, text, language):
    assert strip_template(TAGGED.whole(said)) == text
    assert TAGGED.language(said) == language
    silent = "None" in said and not text
    assert TAGGED.says_nobody_speaks(said) == silent


def test_with_the_language_in_the_prompt_an_answer_has_no_tag():
    segments = (PromptSegment("audio"), PromptSegment("language"))
    prompt = PromptSpec(segments, (2,), answer="language-tag", languages=LANGUAGES)
    assert not AnswerReader.of(prompt).plain
    told = AnswerReader.of(prompt.with_language("Chinese"))
    assert told.plain and told.shown("language") == "language" and told.language("x") == "zh"


def test_nothing_but_tags_over_and_over_is_seen():
    tag = "language English<asr_text>"
    assert [TAGGED.is_stuck(tag * count) for count in range(5)] == [False, False, False, True, True]
    assert not TAGGED.is_stuck(3 * tag + "hello")
