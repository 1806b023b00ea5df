"""Speakers and times in what MOSS-Transcribe-Diarize says, against transformers' processor, and whatever part of it was said."""

from __future__ import annotations

import itertools

import pytest

from prunella.device_runtime.decoding.answer import AnswerReader, AnswerStream, read_answer, write_answer
from prunella.device_runtime.decoding.diarized import opening, turns, words
from prunella.device_runtime.transcript import Turn

SAID = "[0.00][S01]Hello there.[7.56][7.60][S02] It is [10] or [S, he said. [8.10][1:02.5][S01]Yes[01:00:03]"
SPOKEN = [
    SAID.replace("[10]", "ten").replace("[S,", "so,"),
    "[0.00][S01]Hello there.[7.56]",
    "assistant\n[0][S01]你好。[1.5][1.5][S02]再见[2]",
    "No tags at all.",
]


@pytest.mark.parametrize("said", SPOKEN)
def test_turns_are_those_of_the_processor(said):
    processing = pytest.importorskip(
        "transformers.models.moss_transcribe_diarize.processing_moss_transcribe_diarize"
    )
    kind = processing.MossTranscribeDiarizeProcessor
    pattern = r"\[(?P<start>[^\[\]]+)\]\[S(?P<speaker>\d+)\](?P<content>.*?)\[(?P<end>[^\[\]]+)\]"
    theirs = kind.__new__(kind)
    theirs._segment_pattern = processing.re.compile(pattern, processing.re.DOTALL)  # noqa: SLF001 - as it makes itself
    parsed = theirs.extract_speaker_dict(said)
    found = turns(said, 0.0, 1e6)
    if isinstance(parsed, str):
        assert found == () and words(said) == parsed
        return
    assert [(int(one.speaker[1:]), one.text) for one in found] == [
        (one["Speaker"], one["Content"]) for one in parsed
    ]
    assert [time for one in found for time in (one.t0, one.t1)] == pytest.approx(
        [one[key] for one in parsed for key in ("Start", "End")]
    )
    assert words(said).removeprefix("assistant ") == theirs.extract_transcription(said)


def test_times_count_from_the_audio_and_stay_in_it():
    said = "[0.50][S01]One.[1.00][2.00][S02]Two.[99.00]Three"
    assert turns(said, 10.0, 14.0) == (
        Turn("S01", 10.5, 11.0, "One."),
        Turn("S02", 12.0, 14.0, "Two."),
        Turn("S02", 14.0, 14.0, "Three"),
    )
    assert turns("[0.50][S01]One. And [", 10.0, 14.0) == (Turn("S01", 10.5, 14.0, "One. And"),)


def test_no_tag_is_shown_while_it_is_said_and_text_only_grows():
    shown = [words(SAID[:count]) for count in range(len(SAID) + 1)]
    assert all(after.startswith(before) for before, after in itertools.pairwise(shown))
    assert shown[-1] == "Hello there. It is or [S, he said. Yes"
    stream = AnswerStream(AnswerReader("diarized"))
    pieces = [stream.feed(SAID[at : at + 3]) for at in range(0, len(SAID), 3)]
    assert "".join([*pieces, stream.finish(SAID)]) == shown[-1]


def test_an_opening_is_what_is_before_the_first_word():
    for said in ("", "[", "[0", "[0.00", "[0.00]", "[0.00][", "[0.00][S", "[0.00][S01"):
        assert opening(said) == -1, said
    assert opening("[0.00][S01]") == opening("[0.00][S01]Hi") == len("[0.00][S01]")
    assert opening("Hi") == opening("[laughs]") == 0


def test_a_plain_transcript_becomes_one_turn_and_one_with_speakers_stays():
    assert write_answer("Hi.", "diarized", seconds=1.234) == "[0.00][S01]Hi.[1.23]"
    for text in ("[0.00][S02]Hi.[1.00]", ""):
        assert write_answer(text, "diarized", seconds=1.0) == text
    assert read_answer(write_answer("Hi.", "diarized", seconds=2), "diarized") == "Hi."
