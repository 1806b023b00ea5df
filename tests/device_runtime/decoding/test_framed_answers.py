"""Models that put something around a transcript, through the whole transcriber: over an engine that says what it is told."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.bundle import AudioSpec, Language, PromptSegment, PromptSpec
from prunella.device_runtime.decoding.draft import Draft, Guess
from prunella.device_runtime.decoding.phrase_grammar import parse_phrases
from prunella.device_runtime.live.session import LiveSession
from prunella.device_runtime.transcriber import Transcriber
from prunella.device_runtime.transcript import DecodeOptions

ENDS = (2, 0)
BEHIND = (1,)
ALPHABET = " abcdefghijklmnopqrstuvwxyz'"


@pytest.fixture(scope="module")
def tagging(tokenizer) -> Tokenizer:
    own = Tokenizer.from_str(tokenizer.to_str())
    own.add_tokens([AddedToken("<asr_text>", special=False, normalized=False)])
    return own


@dataclass
class Talking:
    """Says an answer that depends on the tokens behind the audio, then one of the ends; `doubts` are other likely tokens."""

    answers: dict[tuple[int, ...] | None, list[int]]
    vocabulary: int
    letters: np.ndarray | None = None
    doubts: dict[tuple[int, ...], int] = field(default_factory=dict)
    end: int = ENDS[0]
    name: str = "talking"
    near_tie_margin: float = 0.0
    most_beams: int | None = None
    passes: int = 0
    after: tuple[int, ...] | None = None
    scored: tuple = ()

    has_ctc_head = True

    @property
    def ctc_log_probs(self):
        return self.letters

    def encode(self, samples):
        return np.zeros((4, 4), np.float32)

    def start(self, audio_embeddings, after=None):
        self.after, self.said, self.rows = after, [], [()]
        self.script = [*(self.answers.get(after) or self.answers[None]), self.end]
        return self._row(())

    def step(self, token):
        return self.extend([token])[0]

    def extend(self, tokens):
        self.passes += 1
        rows = []
        for token in tokens:
            self.said.append(token)
            rows.append(self._row(tuple(self.said)))
        return np.stack(rows)

    def rewind(self, count):
        del self.said[len(self.said) - count :]

    def step_beams(self, tokens, parents):
        self.rows = [(*self.rows[parent], token) for token, parent in zip(tokens, parents, strict=True)]
        return np.stack([self._row(row) for row in self.rows])

    def token_embeddings(self, tokens):
        return None

    def score(self, audio_embeddings, tokens, after=None):
        self.scored = (tokens, after)
        return np.full(len(tokens), 0.5, np.float32)

    def _row(self, said):
        row = np.zeros(self.vocabulary, np.float32)
        place = len(said)
        same = all(
            a in (b, self.doubts.get(said[:i]))
            for i, (a, b) in enumerate(zip(said, self.script, strict=False))
        )
        row[self.script[place] if place < len(self.script) and same else self.end] = 14.0
        if said in self.doubts:
            row[self.doubts[said]] = 14.3
        return row


LANGUAGES = ("English", "German")


@pytest.fixture
def talk(tagging):
    """A transcriber whose model says these answers: unasked, and to each language's prompt."""

    def make(
        said: str | None = None, *, answer="language-tag", names=LANGUAGES, options=None, told=None, **engine
    ) -> Transcriber:
        def ids(text):
            return tagging.encode(text, add_special_tokens=False).ids

        texts = {name: f"language {name}<asr_text>" for name in names}
        languages = tuple(
            Language(name[:2].lower(), name, text, tuple(ids(text))) for name, text in texts.items()
        )
        segments = [PromptSegment("audio"), PromptSegment("text", "x", BEHIND)]
        segments += [PromptSegment("language")] if names else []
        prompt = PromptSpec(tuple(segments), ENDS, answer=answer, languages=languages)
        answers = {None: ids(said or "")}
        for name, text in (told or {}).items():
            answers[(*BEHIND, *ids(texts[name]))] = ids(text)
        talking = Talking(answers, tagging.get_vocab_size(), **engine)
        options = options or DecodeOptions(draft=False)
        return Transcriber(talking, tagging, AudioSpec(ctc_alphabet=ALPHABET), prompt, options)

    return make


BEAMS = pytest.mark.parametrize("beams", [1, 3])


@BEAMS
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("said", "answer", "text", "language"),
    [
        ("language German<asr_text>go forward ten meters", "language-tag", "go forward ten meters", "ge"),
        ("language Klingon<asr_text>go forward", "language-tag", "go forward", "Klingon"),
        ("go forward", "language-tag", "go forward", None),
        ('The spoken content of the audio is "go forward".', "quoted", "go forward", None),
    ],
)
def test_what_is_around_a_transcript_is_never_shown(talk, tone, said, answer, text, language, beams, end):
    transcriber = talk(said, answer=answer, end=end).with_options(beams=beams)
    steps, seen = transcriber.stream(tone), []
    with pytest.raises(StopIteration) as done:
        while True:
            seen.append(next(steps))
    transcript = done.value.value
    assert (transcript.text, transcript.finish_reason, transcript.language) == (text, "eos", language)
    assert all(after.startswith(before) for before, after in itertools.pairwise([*seen, text]))
    assert beams > 1 or len({*seen} - {""}) > 1
    assert transcript.to_json()["language"] == transcript.to_json()["segments"][0]["language"] == language
    json.dumps(transcript.to_json())


@BEAMS
def test_the_language_that_is_asked_for_reaches_the_prompt(talk, tone, beams):
    transcriber = talk("language English<asr_text>hello", told={"German": "language lab"}).with_options(
        beams=beams
    )
    german = transcriber.with_language("German")
    assert german.with_language("ge") is german
    found = german.transcribe(tone)
    assert (found.text, found.language) == ("language lab", "ge")
    assert transcriber.engine.after[: len(BEHIND)] == BEHIND and len(transcriber.engine.after) > len(BEHIND)
    assert german.with_language("").transcribe(tone).text == "hello"
    assert transcriber.engine.after == BEHIND
    with pytest.raises(UsageError, match=r"en \(English\)"):
        transcriber.with_language("tlh")
    with pytest.raises(UsageError, match="takes no language"):
        talk("hello", names=()).with_language("en")


@BEAMS
@pytest.mark.parametrize("times", [1, 2, 9])
def test_the_models_word_for_silence_is_silence(talk, tone, times, beams):
    transcriber = talk("language None<asr_text>" * times).with_options(beams=beams)
    transcript = transcriber.transcribe(tone)
    assert (transcript.text, transcript.finish_reason, transcript.language) == ("", "silence", None)
    if beams == 1:
        assert transcriber.engine.passes <= 3 * transcriber.prompt.opening_ids
    assert set(transcriber.stream(tone)) <= {""}


@BEAMS
def test_a_loop_right_behind_the_tag_is_cut(talk, tone, beams):
    transcript = (
        talk("language English<asr_text>go go go go go go").with_options(beams=beams).transcribe(tone)
    )
    assert (transcript.text, transcript.finish_reason) == ("go", "repeat")


def test_a_tag_takes_nothing_from_what_may_be_said(talk, tone):
    letters = "go forward ten meters and stop " * 9
    transcript = talk(f"language English<asr_text>{letters}", options=DecodeOptions(guards=False)).transcribe(
        tone
    )
    plain = talk(letters, answer="as-is", names=(), options=DecodeOptions(guards=False)).transcribe(tone)
    assert transcript.finish_reason == plain.finish_reason == "length"
    assert transcript.text.startswith(plain.text)


def test_phrases_are_what_is_said_behind_the_language(talk, tone):
    phrases = parse_phrases("go forward\nstop")
    transcriber = talk(
        "language English<asr_text>never", told={"English": "go forward", "German": "stop"}
    ).with_phrases(phrases)
    found = transcriber.transcribe(tone)
    assert (found.text, found.finish_reason, found.language) == ("go forward", "phrase", "en")
    assert found.phrases[0]["score"] > 0.9
    german = transcriber.with_language("German").transcribe(tone)
    assert (german.text, german.language) == ("stop", "ge")
    other = talk(names=("German",), told={"German": "stop"}).with_phrases(phrases).transcribe(tone)
    assert (other.text, other.language) == ("stop", "ge")


@pytest.mark.parametrize(
    ("answer", "said", "opening"),
    [
        ("language-tag", "stop", "language English<asr_text>"),
        ("quoted", 'stop".', 'The spoken content of the audio is "'),
    ],
)
def test_phrases_of_a_model_that_cannot_be_told_the_language_stand_behind_its_frame(
    talk, tagging, tone, answer, said, opening
):
    transcriber = talk(said, answer=answer, names=()).with_phrases(parse_phrases("go forward\nstop"))
    found = transcriber.transcribe(tone)
    assert (found.text, found.finish_reason) == ("stop", "phrase")
    assert found.phrases[0]["score"] > 0.9
    assert transcriber.engine.after == (*BEHIND, *tagging.encode(opening, add_special_tokens=False).ids)


def test_a_score_is_of_what_the_model_says(talk, tagging, tone):
    transcriber = talk("x", told={"German": "x"})
    loss, count = transcriber.score(tone, "go forward")
    ids = tagging.encode("language English<asr_text>go forward").ids
    assert transcriber.engine.scored == ([*ids, ENDS[0]], BEHIND)
    assert (loss, count) == (0.5 * count, len(ids) + 1)
    transcriber.with_language("German").score(tone, "go forward")
    tokens, after = transcriber.engine.scored
    assert tokens == [*tagging.encode("go forward").ids, ENDS[0]] and len(after) > len(BEHIND)


def spelled(text: str) -> np.ndarray:
    """Log-probabilities of a CTC head that hears a text, a letter every other frame."""
    rows = np.full((2 * len(text) + 1, 1 + len(ALPHABET)), -9.0, np.float32)
    rows[::2, 0] = 0
    for place, letter in enumerate(text):
        rows[2 * place + 1, 1 + ALPHABET.index(letter)] = 0
    return rows


@pytest.mark.parametrize("tag", ["language English<asr_text>", "language None<asr_text>", ""])
@pytest.mark.parametrize("heard", ["go on", "d on"])
def test_letters_are_those_behind_the_tag(talk, tagging, tone, tag, heard):
    before = tuple(tagging.encode(tag).ids)
    (other,) = tagging.encode("d").ids
    doubts = {before: other}
    transcriber = talk(f"{tag}go on", letters=spelled(heard), doubts=doubts).with_options(beams=3)
    found = transcriber.transcribe(tone)
    assert found.text == heard
    assert found.language == ("en" if "English" in tag else None)


def test_what_is_read_off_the_audio_is_verified_behind_the_tag(talk, tagging, tone):
    class Drafter:
        def draft(self, embeddings):
            return Draft([Guess(token, 0.95) for token in tagging.encode("go forward ten meters").ids])

    tag, text = "language English<asr_text>", "go forward ten meters"
    transcriber = talk(tag + text, options=DecodeOptions(draft=True))
    plain = transcriber.transcribe(tone)
    drafted = Transcriber(
        transcriber.engine,
        tagging,
        transcriber.audio,
        transcriber.prompt,
        transcriber.options,
        drafter=Drafter(),
    ).transcribe(tone)
    assert drafted.tokens == plain.tokens and drafted.text == text
    tag_ids, text_ids = len(tagging.encode(tag).ids), len(tagging.encode(text).ids)
    assert plain.segments[0].passes == tag_ids + text_ids
    assert drafted.segments[0].passes <= tag_ids + -(-text_ids // 12) + 1
    # What was said of the beginning is a draft too, with its tag.
    again = transcriber.transcribe(tone, draft=plain.tokens)
    assert again.tokens == plain.tokens and again.segments[0].passes <= 2


def test_live_texts_have_no_tag_and_say_the_language(talk, tone):
    events = []
    with LiveSession(
        talk("language German<asr_text>go on"),
        events.append,
        vad=lambda frame: float(np.abs(frame).max() > 0.05),
    ) as session:
        session.feed(np.concatenate([tone, tone, np.zeros(32_000, np.float32)]))
    final = next(event for event in events if event.type == "final")
    assert final.to_json()["language"] == "ge" and final.text == "go on"
    assert {event.text for event in events} <= {"", "go", "go on"}
