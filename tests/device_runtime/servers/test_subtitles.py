"""Subtitles can be read: every word once, in order, in short lines that stand for at most seven seconds."""

from __future__ import annotations

import itertools
import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.device_runtime.live.events import LiveEvent
from prunella.device_runtime.servers.formats import render, subtitles
from prunella.device_runtime.servers.service import Recognition, Utterance
from prunella.device_runtime.servers.subtitles import LINE, LONGEST_CUE, cues, quiet_spans
from prunella.device_runtime.transcript import Segment, Timings, Transcript, Turn

WORDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=60),
    max_size=120,
)
SENTENCE = (
    "it was a bright cold day in april and the clocks were striking thirteen while winston smith slipped in"
)


@st.composite
def utterances(draw):
    t0 = draw(st.floats(0, 4_000, allow_nan=False))
    t1 = t0 + draw(st.floats(0, 60, allow_nan=False))
    marks = sorted(draw(st.lists(st.floats(t0 - 1, t1 + 1), max_size=12)))
    return draw(WORDS), t0, t1, tuple(zip(marks[::2], marks[1::2], strict=False))


@settings(max_examples=1_000, deadline=None)
@given(utterances())
def test_every_word_once_in_order_and_within_bounds(said):
    words, t0, t1, pauses = said
    text = " ".join(words)
    found = cues(text, t0, t1, pauses)
    shown = [word for cue in found for line in cue.lines for word in line.split()]
    assert "".join(shown) == "".join(text.split())
    if all(len(word) <= LINE for word in text.split()):
        assert shown == text.split()
    for cue in found:
        assert 1 <= len(cue.lines) <= 2 and all(0 < len(line) <= LINE for line in cue.lines)
        assert 0 <= round(cue.t1 * 1000) - round(cue.t0 * 1000) <= LONGEST_CUE * 1000
    times = [round(t * 1000) for cue in found for t in (cue.t0, cue.t1)]
    assert times == sorted(times)
    if times:
        assert round(t0 * 1000) <= times[0] and times[-1] <= round(t1 * 1000)


def test_a_cue_ends_in_the_pause():
    words = SENTENCE.split()
    (first, second) = cues(SENTENCE, 0.0, 9.0, [(0.0, 0.3), (4.0, 4.8), (8.7, 9.0)])
    assert first.t1 == 4.0 and second.t0 == 4.8
    assert (first.t0, second.t1) == (0.0, 9.0)  # with the quiet around it
    assert abs(len(" ".join(first.lines)) - len(" ".join(second.lines))) < 20
    assert [*" ".join(first.lines).split(), *" ".join(second.lines).split()] == words


def test_the_longest_pause_in_reach_is_the_one():
    found = cues(SENTENCE, 0.0, 10.0, [(3.0, 3.2), (4.0, 4.5), (5.0, 5.2)])
    assert (found[0].t1, found[1].t0) == (4.0, 4.5)


def test_without_pauses_the_letters_are_shared_evenly():
    found = cues(" ".join(["word"] * 60), 0.0, 28.0)
    lengths = [cue.t1 - cue.t0 for cue in found]
    assert len(found) == 4 and max(lengths) - min(lengths) < 0.01
    assert all(before.t1 == after.t0 for before, after in itertools.pairwise(found))


def test_a_short_utterance_stays_whole():
    (cue,) = cues("turn on the light", 1.0, 3.0, [(1.9, 2.1)])
    assert (cue.t0, cue.t1, cue.lines) == (1.0, 3.0, ("turn on the light",))


def test_two_lines_are_even():
    ((_, _, lines),) = [
        (cue.t0, cue.t1, cue.lines)
        for cue in cues("one two three four five six seven eight nine ten", 0.0, 5.0)
    ]
    assert abs(len(lines[0]) - len(lines[1])) < 6


def test_one_word_in_much_music_is_shown_for_seven_seconds():
    (cue,) = cues("hello", 2.0, 22.0)
    assert cue.t1 - cue.t0 == LONGEST_CUE and cue.t0 >= 2.0


def test_quiet_is_what_the_detector_says():
    assert quiet_spans([0.9, 0.1, 0.1, 0.1, 0.9, 0.1, 0.9], 1.0, 0.1, shortest=0.2) == ((1.1, 1.4),)
    assert quiet_spans([], 0.0, 0.1) == ()
    assert quiet_spans([0.0] * 3, 0.0, 0.1) == ((0.0, 3 * 0.1),)


def _recognition() -> Recognition:
    pauses = ((4.0, 4.8),)
    first = Utterance(0.0, 9.0, Transcript(f"<i>{SENTENCE} --> &"), pauses)
    return Recognition(20.0, (first, Utterance(12.0, 13.0, Transcript("  and   on\n"))))


def test_srt_numbers_its_cues_and_breaks_them():
    blocks = render(_recognition(), "srt", model="m", language="en").split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["1", "2", "3"]
    assert "00:00:00,000 --> 00:00:04,000" in blocks[0] and "00:00:04,800 --> 00:00:09,000" in blocks[1]
    assert blocks[2].splitlines()[1:] == ["00:00:12,000 --> 00:00:13,000", "and on"]


def test_vtt_keeps_its_marks_out_of_the_text():
    text = render(_recognition(), "vtt", model="m", language="en")
    assert text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:04.000\n&lt;i&gt;it was")
    assert len(re.findall("-->", text)) == 3 and "--&gt; &amp;" in text


def _conversation() -> Transcript:
    turns = (Turn("S01", 0.5, 2.0, "Is <it> so?"), Turn("S02", 2.5, 3.0, "No."))
    segment = Segment(0.0, 4.0, "Is <it> so? No.", (1, 2), 50, "eos", Timings(), turns=turns)
    return Transcript("Is <it> so? No.", (segment,))


def test_every_form_says_who_speaks_and_when():
    heard = Recognition(20.0, (Utterance(10.0, 14.0, _conversation()),))
    srt = render(heard, "srt", model="m", language="en")
    assert "00:00:10,500 --> 00:00:12,000\nS01: Is <it> so?\n" in srt
    assert "00:00:12,500 --> 00:00:13,000\nS02: No.\n" in srt
    vtt = render(heard, "vtt", model="m", language="en")
    assert "00:00:10.500 --> 00:00:12.000\n<v S01>Is &lt;it&gt; so?\n" in vtt
    body = json.loads(render(heard, "verbose_json", model="m", language="en"))
    assert body["segments"][0]["turns"] == [
        {"speaker": "S01", "t0": 10.5, "t1": 12.0, "text": "Is <it> so?"},
        {"speaker": "S02", "t0": 12.5, "t1": 13.0, "text": "No."},
    ]
    assert [cue["speaker"] for cue in subtitles(heard)] == ["S01", "S02"]
    event = LiveEvent("final", 1, 10.0, 14.0, "Is <it> so? No.", transcript=_conversation())
    assert event.to_json()["turns"] == body["segments"][0]["turns"]
