"""The repeat stop against its definition."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunella.device_runtime.decoding.repeat_stop import RepeatStop


def _said(text: str, **options) -> RepeatStop:
    stop = RepeatStop(**options)
    stop.feed(text)
    stop.finish()
    return stop


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a friend ha ha ha ha ha ha", "a friend ha"),
        ("no no no no no no", "no"),
        ("one two one two one two one two", "one two"),
        ("so we go and then we go and then we go and then we stop", "so we go and then"),
        ("Thank you. Thank you, thank you!", "Thank you."),
    ],
)
def test_one_copy_of_a_loop_is_kept(text, kept):
    stop = _said(text)
    assert stop.looped
    assert stop.text == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no no",
        "no no nowhere",
        "five five",
        "a b a b a",
        "one two three one two three",
        "no no no",
        "five five five five five",
    ],
)
def test_what_people_say_is_no_loop(text):
    stop = _said(text)
    assert not stop.looped
    assert stop.text == text


def test_loops_of_up_to_48_words_are_seen():
    phrase = " ".join(f"w{i}" for i in range(48))
    assert _said(f"{phrase} {phrase}").text == phrase
    longer = phrase + " w48"
    assert not _said(f"{longer} {longer} {longer}").looped


def test_eight_words_said_twice_are_a_loop_seven_are_not():
    phrase = "it is the duty of a newspaper"
    assert not _said(f"{phrase} {phrase}").looped
    assert _said(f"{phrase} man {phrase} man and so on").text == f"{phrase} man"


def test_it_is_configurable():
    assert _said("no no no", min_words=0).text == "no"
    assert not _said("no no no", times=4, min_words=0).looped
    assert _said("no no no no", times=4, min_words=0).text == "no"
    assert not _said("one two one two one two", max_words=1).looped
    assert not _said("no " * 50, times=0).looped
    assert not _said("no " * 50, times=1).looped


def test_it_stops_as_soon_as_the_third_copy_is_complete():
    stop = RepeatStop()
    fed = []
    for piece in ["I", " a", "m", " I", " am", " I", " am", " I", " am", " I"]:
        fed.append(piece)
        if stop.feed(piece):
            break
    assert "".join(fed) == "I am I am I am I"  # the last word was known to be whole when the next began
    assert stop.text == "I am"
    assert stop.feed(" more") and stop.text == "I am"


def _first_loop(words: list[str], max_words: int, times: int, min_words: int) -> list[str] | None:
    """The definition, said plainly."""
    for end in range(1, len(words) + 1):
        for size in range(1, max_words + 1):
            copies = 2 if size >= 8 else times
            while copies * size < min_words:
                copies += 1
            tail = words[max(0, end - size * copies) : end]
            if len(tail) == size * copies and tail == tail[:size] * copies:
                return words[: end - size * (copies - 1)]
    return None


@given(
    words=st.lists(st.sampled_from(["a", "bb", "c"]), max_size=60),
    max_words=st.integers(1, 24),
    times=st.integers(2, 4),
    min_words=st.integers(0, 8),
    cuts=st.lists(st.integers(0, 150), max_size=30),
)
def test_any_words_in_any_pieces_follow_the_definition(words, max_words, times, min_words, cuts):
    text = " ".join(words)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stop = RepeatStop(max_words, times, min_words)
    for start, end in itertools.pairwise(bounds):
        stop.feed(text[start:end])
    stop.finish()
    expected = _first_loop(words, max_words, times, min_words)
    assert stop.looped == (expected is not None)
    assert stop.text.split() == (words if expected is None else expected)
