"""Beam search against trying everything, and what letters do to it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.device_runtime.base.errors import EngineError, UsageError
from prunella.device_runtime.decoding.beam_search import PER_LETTER, BeamSearch
from prunella.device_runtime.decoding.ctc_rescorer import CtcPrefixRescorer, TokenSpeller
from prunella.device_runtime.transcript import DecodeOptions

END = 0
WORDS = {1: " a", 2: "b", 3: "c", 4: " ab"}
SPELLER = TokenSpeller(" abc", lambda token: WORDS[token])


def log_softmax(rows: np.ndarray) -> np.ndarray:
    return rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True)


def row_after(seed: int, tokens: tuple[int, ...]) -> np.ndarray:
    """A pseudo-random decoder, which wants to end after three tokens."""
    row = 2 * np.random.default_rng([seed, *tokens]).standard_normal(5)
    row[END] += 20 if len(tokens) >= 3 else 0
    return row.astype(np.float32)


def searched(seed: int, beams: int, rescorer: CtcPrefixRescorer | None, weight: float) -> BeamSearch:
    search = BeamSearch(beams, (END,), rescorer, weight)
    tokens, parents = search.advance(row_after(seed, ())[None])
    texts: list[tuple[int, ...]] = [()]
    while tokens:
        texts = [(*texts[parent], token) for token, parent in zip(tokens, parents, strict=True)]
        assert texts == [hypothesis.tokens for hypothesis in search.alive]
        tokens, parents = search.advance(np.stack([row_after(seed, text) for text in texts]))
    return search


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_what_is_settled_is_never_taken_back(seed: int, beams: int) -> None:
    search = BeamSearch(beams, (END,))
    settled = [search.settled]
    tokens, _ = search.advance(row_after(seed, ())[None])
    while tokens:
        settled.append(search.settled)
        tokens, _ = search.advance(np.stack([row_after(seed, one.tokens) for one in search.alive]))
    for early, late in itertools.pairwise([*settled, search.best.tokens]):
        assert late[: len(early)] == early


def test_what_a_sure_decoder_says_is_settled_at_once() -> None:
    search = BeamSearch(1, (END,))
    for count in range(1, 5):
        row = np.zeros(60, np.float32)
        row[count], row[END] = 30, -30
        search.advance(row[None])
        assert search.settled == tuple(range(1, count + 1))
    row[END] = 60
    search.advance(row[None])
    assert search.settled == search.best.tokens == (1, 2, 3, 4, END)


def judged(seed: int, tokens: tuple[int, ...], rescorer: CtcPrefixRescorer | None, weight: float) -> float:
    scores = [log_softmax(row_after(seed, tokens[:place]))[token] for place, token in enumerate(tokens)]
    if rescorer is not None:
        for place in range(len(tokens) + 1):
            rescorer.score(tokens[:place])
    return float(sum(scores)) + (weight * rescorer.score(tokens) if rescorer is not None else 0.0)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_enough_beams_find_the_best_of_all_texts(seed: int, with_letters: bool) -> None:
    table = log_softmax(2 * np.random.default_rng(seed).standard_normal((7, 5)))
    rescorer = CtcPrefixRescorer(table, SPELLER, (END,)) if with_letters else None
    weight = 0.5 if with_letters else 0.0
    best = searched(seed, 200, rescorer, weight).best
    texts = [(*text, END) for count in range(5) for text in itertools.product((1, 2, 3, 4), repeat=count)]
    scores = {text: judged(seed, text, rescorer, weight) for text in texts}
    assert best.score == pytest.approx(max(scores.values()), abs=1e-4)
    assert best.tokens == max(scores, key=scores.__getitem__)


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_candidates_that_are_passed_over_could_not_have_won(seed: int, beams: int) -> None:
    table = log_softmax(2 * np.random.default_rng(seed).standard_normal((7, 5)))
    rescorer, plain = (CtcPrefixRescorer(table, SPELLER, (END,)) for _ in range(2))
    search = BeamSearch(beams, (END,), rescorer, 0.5)
    alive: list[tuple[int, ...]] = [()]
    ended: dict[tuple[int, ...], float] = {}
    while alive:
        search.advance(np.stack([row_after(seed, text) for text in alive]))
        longer = {
            (*text, token): judged(seed, (*text, token), plain, 0.5) for text in alive for token in range(5)
        }
        ended |= {text: score for text, score in longer.items() if text[-1] == END}
        best_ended = max(ended.values())
        ranks = {
            text: score + PER_LETTER * plain.outlook(text[:-1], text[-1])[0]
            for text, score in longer.items()
            if text[-1] != END
        }
        going = sorted(ranks, key=lambda text: -ranks[text])
        alive = [text for text in going if longer[text] > best_ended][:beams]
        assert [hypothesis.tokens for hypothesis in search.alive] == alive
    assert search.best.score == pytest.approx(max(ended.values()), abs=1e-4)


class Whole(CtcPrefixRescorer):
    """Hears every candidate to its end."""

    def score(self, tokens: tuple[int, ...], least: float = -math.inf) -> float:
        return super().score(tokens)

    def outlook(self, tokens: tuple[int, ...], token: int) -> tuple[int, float] | None:
        found = super().outlook(tokens, token)
        return None if found is None else (found[0], super().score(tokens))


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([math.inf, 7.0, 2.0]))
@settings(max_examples=40, deadline=None)
def test_candidates_that_are_given_up_change_nothing(seed: int, beams: int, width: float) -> None:
    """Words of several letters over many frames: most are given up within."""
    random = np.random.default_rng(seed)
    words = {token: "".join(random.choice([*" abc"], 5)) for token in range(1, 60)}
    speller = TokenSpeller(" abc", lambda token: words[token])
    table = log_softmax(4 * random.standard_normal((40, 5)))
    found = []
    for kind in (CtcPrefixRescorer, Whole):
        search = BeamSearch(beams, (END,), kind(table, speller, (END,)), 0.3, width)
        followed = []
        for step in range(6):
            rows = 3 * np.random.default_rng([seed, step]).standard_normal((len(search.alive), 60))
            if not search.advance(rows.astype(np.float32))[0]:
                break
            followed.append([(one.tokens, one.score, one.rank) for one in search.alive])
        found.append((followed, search.ended))
    assert found[0] == found[1]


def test_what_is_far_behind_is_not_followed() -> None:
    row = np.full((1, 60), -30.0, np.float32)
    row[0, [3, 4, 5]] = 0.0, -2.0, -9.0
    assert BeamSearch(4, (END,), width=7.0).advance(row)[0] == [3, 4]
    assert BeamSearch(4, (END,)).advance(row)[0][:3] == [3, 4, 5]


def test_one_beam_is_greedy() -> None:
    for seed in range(20):
        text: tuple[int, ...] = ()
        while not text or text[-1] != END:
            text = (*text, int(row_after(seed, text).argmax()))
        found = searched(seed, 1, None, 0.0)
        assert found.best.tokens == text or found.best.score > judged(seed, text, None, 0.0)


def test_letters_overrule_a_decoder_that_is_not_sure() -> None:
    """The decoder would rather say "ab"; "ac" is heard."""
    frames = np.full((4, 5), -8.0)
    frames[0, 2] = frames[1, 0] = frames[2, 4] = frames[3, 0] = 0.0
    rows = {(): [-9, 3, 0, 0, -9], (1,): [-9, -9, 2.0, 1.5, -9]}

    def said(rescorer: CtcPrefixRescorer | None) -> tuple[int, ...]:
        search = BeamSearch(4, (END,), rescorer, 0.2)
        tokens, parents = search.advance(np.array([rows[()]], np.float32))
        texts: list[tuple[int, ...]] = [()]
        while tokens:
            texts = [(*texts[parent], token) for token, parent in zip(tokens, parents, strict=True)]
            ended = [9.0, -9, -9, -9, -9]
            tokens, parents = search.advance(np.array([rows.get(text, ended) for text in texts], np.float32))
        return search.best.tokens

    assert said(None) == (1, 2, END)
    assert said(CtcPrefixRescorer(log_softmax(frames), SPELLER, (END,))) == (1, 3, END)


def test_who_has_spelled_more_of_the_audio_is_not_behind() -> None:
    """ "ab" is heard. One token of it costs the decoder more than the first of two, which has not paid for its "b" yet."""
    frames = np.full((4, 5), -3.0)
    frames[0, 2] = frames[1, 0] = frames[2, 3] = frames[3, 0] = 0.0
    rescorer = CtcPrefixRescorer(log_softmax(frames), SPELLER, (END,))
    search = BeamSearch(1, (END,), rescorer, 0.5)
    row = np.array([[-9.0, 1.0, -9, -9, 0.9]], np.float32)
    assert judged_row(row, (1,), rescorer) > judged_row(row, (4,), rescorer)
    assert search.advance(row)[0] == [4]


def judged_row(row: np.ndarray, tokens: tuple[int, ...], rescorer: CtcPrefixRescorer) -> float:
    return float(log_softmax(row)[0, tokens[0]]) + 0.5 * rescorer.score(tokens)


def test_spelling_has_one_space_between_words() -> None:
    assert SPELLER.spell(1, 0) == (2,)
    assert SPELLER.spell(1, 1) == (2,)
    assert SPELLER.spell(1, 3) == (1, 2)
    assert TokenSpeller("ab", lambda token: "A, b!").spell(7, 1) == (1, 2)


@pytest.mark.parametrize("text", ["a7", "\N{REPLACEMENT CHARACTER}", "c"])
def test_what_cannot_be_spelled_is_not_said(text: str) -> None:
    """It would cost nothing, and win over every word that has letters."""
    speller = TokenSpeller("ab", lambda token: text if token == 1 else "b")
    assert speller.spell(1, 0) is None
    rescorer = CtcPrefixRescorer(np.log(np.full((4, 3), 1 / 3)), speller, (END,))
    search = BeamSearch(2, (END,), rescorer, 0.2)
    assert search.advance(np.array([[-9.0, 5.0, 0.0]], np.float32))[0] == [2]


def test_an_engine_that_follows_one_transcript_says_so(scripted) -> None:
    transcriber = scripted("go forward")
    with pytest.raises(EngineError, match="one transcript at a time"):
        transcriber.with_options(beams=4)
    with pytest.raises(UsageError, match="-1 beams"):
        transcriber.with_options(beams=-1)
    assert transcriber.with_options(beams=0).options.beams == 1
    # A bundle that asks for beams is not unusable there.
    assert (
        scripted("go forward", options=DecodeOptions(beams=4))
        .transcribe(np.random.default_rng(0).normal(0, 0.1, 16_000))
        .text
        == "go forward"
    )
