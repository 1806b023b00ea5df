from hypothesis import given
from hypothesis import strategies as st

from prunella.evaluation.marked import AlignedWord, align, marked
from prunella.evaluation.word_errors import count_errors

WORDS = st.lists(st.sampled_from(["cat", "sat", "mat", "dog", "ran", "far"]), max_size=12)


def test_wrong_missing_and_added_words_stand_under_what_was_said():
    text = marked(
        "clip", "he was not an ill disposed young man", "He was an illness young man now.", width=80
    )
    assert text.splitlines() == [
        "clip: 8 words, 4 wrong",
        "  said   he was not an ill     disposed young man -",
        "  heard  he was -   an illness -        young man now",
        "                ^^^    ^^^^^^^ ^^^^^^^^           ^^^",
    ]


def test_what_is_right_has_no_marks_and_long_texts_are_wrapped():
    assert (
        marked("clip", "Go forward.", "go forward")
        == "clip: 2 words, all right\n  said   go forward\n  heard  go forward"
    )
    lines = marked("clip", "one cat sat on a mat " * 20, "one cat sat on a mut " * 20, width=60).splitlines()
    assert max(map(len, lines)) <= 60 and len(lines) > 10


def test_silence_and_nothing_said():
    assert align("two cats", "") == (AlignedWord("2", None), AlignedWord("cats", None))
    assert align("", "a cat") == (AlignedWord(None, "a"), AlignedWord(None, "cat"))
    assert "0 words, 1 wrong" in marked("clip", "um", "cat")


@given(WORDS, WORDS)
def test_as_many_are_marked_as_are_counted(said, heard):
    words = align(" ".join(said), " ".join(heard))
    assert [word.said for word in words if word.said is not None] == said
    assert [word.heard for word in words if word.heard is not None] == heard
    assert sum(word.wrong for word in words) == count_errors(" ".join(said), " ".join(heard)).words.errors
