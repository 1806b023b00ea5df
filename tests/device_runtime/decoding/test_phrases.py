"""Templates become phrases; the search over their trie finds what scoring every phrase would find."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.cli import main
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.bundle import AudioSpec, PromptSpec
from prunella.device_runtime.decoding.phrase_grammar import (
    MAX_PHRASES,
    number_words,
    parse_phrases,
    read_phrases,
)
from prunella.device_runtime.decoding.phrases import PhraseTrie, find_phrase
from prunella.device_runtime.transcriber import Transcriber
from prunella.device_runtime.transcript import Phrase

EOS = 2


def _said(text: str) -> list[str]:
    return [phrase.text for phrase in parse_phrases(text)]


def test_templates_spell_out_every_way_in_order():
    text = """
    {room} = kitchen | living room   # a list
    light: [please] turn (on | off) the {room} light

    stop
    """
    phrases = parse_phrases(text)
    assert len(phrases) == 2 * 2 * 2 + 1
    assert phrases[0] == Phrase("turn on the kitchen light", "light", (("room", "kitchen"),))
    assert phrases[-2].text == "please turn off the living room light"
    assert phrases[-1] == Phrase("stop", "stop")


def test_slots_are_named_and_kept_in_order():
    phrases = parse_phrases("set {digit:first} and {digit:second}")
    assert len(phrases) == 100
    assert phrases[37].slots == (("first", "three"), ("second", "seven"))


def test_numbers_have_words():
    words = [number_words(number) for number in range(101)]
    assert len(set(words)) == 101
    assert [words[n] for n in (0, 13, 20, 42, 100)] == [
        "zero",
        "thirteen",
        "twenty",
        "forty two",
        "one hundred",
    ]
    with pytest.raises(ValueError, match="101"):
        number_words(101)


def test_the_first_of_equal_phrases_stays():
    assert [phrase.label for phrase in parse_phrases("a: go\nb: go\nb: stop")] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("go (on", r"line 1: .*'\)' is missing"),
        ("\ngo [on)", r"line 2: .*'\]' is missing"),
        ("go on)", r"'\)' closes nothing"),
        ("go to {town}", r"\{town\}: define it .* \{digit\}, \{number\}, \{letter\}"),
        ("go to {", "no list"),
        ("{letter}{letter}{letter}{letter}", "too many"),
        ("# nothing\n\n[]", "no phrase"),
    ],
)
def test_what_cannot_be_read_says_where(text, message):
    with pytest.raises(UsageError, match=message):
        parse_phrases(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("go\n" + "(" * 5_000, "line 2: .*more than 32 deep"),
        ("[(" * 17 + "go" + ")]" * 17, "line 1: .*more than 32 deep"),
        ("\n".join(f"{{a{n}}} = {{number}} {{number}}" for n in range(60)), r"line \d+: .*alternatives"),
        ("|" * 60_000, "line 1: .*at most 20000"),
        ("{a} = " + "go " * 20_000 + "\n{a} {number} {number}", "line 2: .*characters"),
        ("{" + "a" * 60_000 + "}", "line 1: there is no list for {a{20,80}:"),
        ("go\nto \ud800", "line 2: .*surrogate"),
    ],
)
def test_a_text_that_stands_for_too_much_is_refused_with_line_and_limit(text, message):
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=message) as refused:
            parse_phrases(text)
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 500


def test_brackets_may_be_as_deep_as_anybody_writes_them():
    assert _said("(" * 32 + "go" + ")" * 32) == ["go"]


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        (["go " * 300], "at most 200"),
        (["go", "stop " * 300], "at most 200"),
        ([f"{n} " * 30 for n in range(10_000, 15_000)], "tokens in all"),
    ],
)
def test_a_trie_has_a_budget_of_tokens(tokenizer, phrases, message):
    with pytest.raises(UsageError, match=message) as refused:
        PhraseTrie([Phrase(text, text) for text in phrases], tokenizer, (EOS,))
    assert len(str(refused.value)) < 300


@given(st.text(alphabet="ab{}()[]|=:# \n", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text):
    try:
        phrases = parse_phrases(text)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert 0 < len(phrases) <= MAX_PHRASES
        assert all(phrase.text for phrase in phrases)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_phrases(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match="UTF-8"):
        read_phrases(tmp_path / "latin.txt")


class GuessingEngine:
    """Logits are a fixed random function of everything that was appended."""

    def __init__(self, seed: int, vocab: int, sharpness: float) -> None:
        self.seed, self.vocab, self.sharpness = seed, vocab, sharpness
        self.tokens: list[int] = []
        self.passes = 0

    def logits(self, tokens) -> np.ndarray:
        generator = np.random.default_rng([self.seed, *tokens])
        return (self.sharpness * generator.standard_normal(self.vocab)).astype(np.float32)

    def step(self, token):
        return self.extend([token])[0]

    def extend(self, tokens):
        self.passes += 1
        rows = []
        for token in tokens:
            self.tokens.append(token)
            rows.append(self.logits(self.tokens))
        return np.stack(rows)

    def rewind(self, count):
        del self.tokens[len(self.tokens) - count :]

    def log_probability(self, ids: list[int]) -> float:
        """Of a whole phrase and its end, token by token."""
        total = 0.0
        for at, token in enumerate([*ids, EOS]):
            logits = self.logits(ids[:at]).astype(np.float64)
            total += logits[token] - np.log(np.exp(logits).sum())
        return total


_WORDS = st.sampled_from(["go", "forward", "ten", "meters", "and", "stop"])


@given(
    st.lists(st.lists(_WORDS, min_size=1, max_size=5), min_size=1, max_size=15),
    st.integers(0, 2**30),
    st.floats(0.5, 8.0),
    st.sampled_from([0.0, 1e-4, 0.01, 0.2]),
)
@settings(max_examples=150, deadline=None)
def test_the_search_finds_what_scoring_every_phrase_finds(tokenizer, lines, seed, sharpness, min_score):
    texts = list(dict.fromkeys(" ".join(words) for words in lines))
    engine = GuessingEngine(seed, tokenizer.get_vocab_size(), sharpness)
    ids = {text: tokenizer.encode(text).ids for text in texts}
    scores = {text: engine.log_probability(ids[text]) for text in texts}
    fits = {t: s for t, s in scores.items() if math.exp(s / (len(ids[t]) + 1)) >= min_score}

    trie = PhraseTrie(parse_phrases("\n".join(texts)), tokenizer, (EOS,), min_score=min_score)
    match = find_phrase(engine, engine.logits([]), trie, max_passes=10_000)

    assert engine.tokens == [], "the engine stands where it stood"
    assert match.exact and match.passes == engine.passes
    if not fits:
        assert match.phrase is None and match.score < min_score
    else:
        best = max(fits, key=fits.__getitem__)
        assert match.phrase is not None
        assert scores[match.phrase.text] == pytest.approx(scores[best], abs=1e-3)
        said = ids[match.phrase.text]
        assert match.tokens == tuple(said)
        assert match.score == pytest.approx(math.exp(scores[match.phrase.text] / (len(said) + 1)), rel=1e-3)


def test_what_has_one_way_on_costs_one_pass(tokenizer):
    engine = GuessingEngine(0, tokenizer.get_vocab_size(), 1.0)
    trie = PhraseTrie(parse_phrases("go forward ten meters and stop"), tokenizer, (EOS,), min_score=0.0)
    assert find_phrase(engine, engine.logits([]), trie).passes == 1


def test_a_search_ends_at_its_limit(tokenizer):
    engine = GuessingEngine(0, tokenizer.get_vocab_size(), 0.01)
    trie = PhraseTrie(parse_phrases("{number} and {number:second}"), tokenizer, (EOS,), min_score=0.0)
    match = find_phrase(engine, engine.logits([]), trie, max_passes=30)
    assert (match.passes, match.exact) == (30, False)
    assert engine.tokens == []


def test_phrases_are_written_as_the_model_writes(tokenizer):
    trie = PhraseTrie(parse_phrases("Go forward!\ngo, forward"), tokenizer, (EOS,), "lower", min_score=0.0)
    engine = GuessingEngine(0, tokenizer.get_vocab_size(), 1.0)
    match = find_phrase(engine, engine.logits([]), trie)
    assert trie.count == 1
    assert match.phrase is not None and match.phrase.text == "Go forward!"
    assert match.tokens == tuple(tokenizer.encode("go forward").ids)


def test_trie_arguments_are_checked(tokenizer):
    with pytest.raises(UsageError, match="0 to 1"):
        PhraseTrie(parse_phrases("go"), tokenizer, (EOS,), min_score=1.5)
    with pytest.raises(UsageError, match="no word"):
        PhraseTrie([Phrase("?!", "x")], tokenizer, (EOS,), "lower")


class SpeakingEngine(GuessingEngine):
    """Finds one text far more likely than any other, whatever it hears."""

    name = "speaking"
    ctc_log_probs = None

    def __init__(self, tokens: list[int], vocab: int) -> None:
        super().__init__(0, vocab, 0.0)
        self.script = [*tokens, EOS]

    def encode(self, samples):
        return np.zeros((4, 4), np.float32)

    def start(self, audio_embeddings):
        self.tokens = []
        return self.logits([])

    def token_embeddings(self, tokens):
        return None

    def logits(self, tokens):
        row = np.zeros(self.vocab, np.float32)
        if list(tokens) == self.script[: len(tokens)] and len(tokens) < len(self.script):
            row[self.script[len(tokens)]] = 12.0
        return row


@pytest.fixture
def speaking(tokenizer):
    def make(text: str) -> Transcriber:
        engine = SpeakingEngine(tokenizer.encode(text).ids, tokenizer.get_vocab_size())
        return Transcriber(
            engine, tokenizer, AudioSpec(), PromptSpec.around_audio("", "", (), (), (EOS,), "lower")
        )

    return make


def test_a_transcriber_held_to_phrases_says_them_or_nothing(speaking, tone):
    phrases = parse_phrases("Go: Go forward {number} meters\nStop!")
    transcript = speaking("go forward ten meters").with_phrases(phrases).transcribe(tone)
    assert (transcript.text, transcript.finish_reason) == ("Go forward ten meters", "phrase")
    (found,) = transcript.phrases
    assert (found["label"], found["slots"]) == ("Go", {"number": "ten"})
    assert found["score"] > 0.9
    json.dumps(transcript.to_json())

    free = speaking("a song and a dance")
    refused = free.with_phrases(phrases).transcribe(tone)
    assert (refused.text, refused.finish_reason, refused.phrases) == ("", "no-phrase", ())
    assert free.transcribe(tone).text == "a song and a dance", "the first transcriber is as free as before"


def test_silence_is_no_phrase(speaking):
    limited = speaking("stop").with_phrases(parse_phrases("stop"))
    assert limited.transcribe(np.zeros(16_000)).finish_reason == "silence"


def test_transcribe_takes_a_list_of_phrases(speaking, tone, tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "tone.wav", tone, 16_000)
    (tmp_path / "phrases.txt").write_text("go forward\nstop\n")
    module = "prunella.device_runtime.options"
    monkeypatch.setattr(f"{module}.open_transcriber", lambda *_, **__: speaking("stop"))
    words = ["transcribe", "B", str(tmp_path / "tone.wav"), "--phrases", str(tmp_path / "phrases.txt")]
    assert main(words) == 0
    assert capsys.readouterr().out == "stop\n"
    assert main([*words, "--min-score", "1.2"]) == 2
    assert "0 to 1" in capsys.readouterr().err
