"""Drafts never change what is said, whatever they guess; they only save passes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prunella.device_runtime.decoding.draft import AudioDrafter, Draft, Guess, draft_of_tokens, spoken_tokens
from prunella.device_runtime.decoding.greedy import GreedyDecoder

VOCABULARY = 97


class HistoryEngine:
    """Logits are a fixed pseudo-random function of everything said so far, as a decoder's are."""

    near_tie_margin = 0.0

    def __init__(self, seed):
        self.seed, self.said, self.calls = seed, [], 0

    def _row(self):
        return np.random.default_rng([self.seed, *self.said]).normal(size=VOCABULARY).astype(np.float32)

    def first(self):
        return self._row()

    def extend(self, tokens):
        self.calls += 1
        rows = []
        for token in tokens:
            self.said.append(token)
            rows.append(self._row())
        return np.stack(rows)

    def step(self, token):
        return self.extend([token])[0]

    def rewind(self, count):
        if count:
            del self.said[-count:]


def decoded(seed, draft, most):
    engine = HistoryEngine(seed)
    decoder = GreedyDecoder(engine, engine.first(), draft)
    tokens = list(decoder.tokens(most))
    assert decoder.passes == engine.calls
    return tokens, engine


guesses = st.lists(st.builds(Guess, st.integers(0, VOCABULARY - 1), st.floats(0.0, 1.0)), max_size=40)


@given(seed=st.integers(0, 10_000), guessed=guesses, most=st.integers(1, 30))
def test_any_draft_gives_the_tokens_of_plain_decoding(seed, guessed, most):
    plain, _ = decoded(seed, None, most)
    drafted, engine = decoded(seed, Draft(guessed), most)
    assert drafted == plain
    assert len(plain) == most
    assert engine.calls <= most - 1
    # The cache holds what was said, and nothing of the guesses that were wrong.
    assert engine.said == plain[: len(engine.said)]


class RoundingEngine(HistoryEngine):
    """What a pass over several appends is off by a little, and so is everything behind it."""

    near_tie_margin = 0.75

    def __init__(self, seed):
        super().__init__(seed)
        self.off = False

    def extend(self, tokens):
        first = len(self.said)
        self.off = self.off and first >= self.off_from
        if len(tokens) > 1 and not self.off:
            self.off, self.off_from = True, first + 1
        rows = super().extend(tokens)
        noise = np.random.default_rng([self.seed, first]).uniform(-0.37, 0.37, rows.shape)
        return rows + noise.astype(np.float32) if self.off else rows

    def rewind(self, count):
        super().rewind(count)
        self.off = self.off and len(self.said) >= self.off_from


@given(seed=st.integers(0, 10_000), guessed=guesses, most=st.integers(1, 30), right=st.integers(0, 30))
def test_a_near_tie_is_decided_by_plain_steps(seed, guessed, most, right):
    plain, _ = decoded(seed, None, most)
    draft = [*(Guess(token, 1.0) for token in plain[:right]), *guessed]
    engine = RoundingEngine(seed)
    decoder = GreedyDecoder(engine, engine.first(), Draft(draft))
    assert list(decoder.tokens(most)) == plain
    assert decoder.passes == engine.calls
    assert engine.said == plain[: len(engine.said)]


def test_without_a_tie_rounding_would_be_heard():
    different = 0
    for seed in range(40):
        plain, _ = decoded(seed, None, 20)
        engine = RoundingEngine(seed)
        engine.near_tie_margin = 0.0
        decoder = GreedyDecoder(engine, engine.first(), draft_of_tokens(plain))
        different += list(decoder.tokens(20)) != plain
    assert different > 5


@given(seed=st.integers(0, 10_000), most=st.integers(2, 30))
def test_a_right_draft_takes_one_pass(seed, most):
    plain, _ = decoded(seed, None, most)
    drafted, engine = decoded(seed, draft_of_tokens(plain), most)
    assert drafted == plain
    assert engine.calls == 1


@given(seed=st.integers(0, 10_000), most=st.integers(8, 30), wrong=st.integers(1, 5))
def test_decoding_finds_its_place_behind_a_wrong_guess(seed, most, wrong):
    plain, _ = decoded(seed, None, most)
    broken = [*plain[:wrong], (plain[wrong] + 1) % VOCABULARY, *plain[wrong + 1 :]]
    drafted, engine = decoded(seed, draft_of_tokens(broken), most)
    assert drafted == plain
    assert engine.calls < most - 1


def test_a_draft_is_read_off_audio_near_its_tokens():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 64)).astype(np.float32)
    ids = list(range(100, 150))
    drafter = AudioDrafter(ids, rows)
    near = [rows[3], rows[3], rng.normal(size=64), rows[7] * 5, rng.normal(size=64), rows[3]]
    draft = drafter.draft(np.array(near, np.float32) + rng.normal(size=(6, 64)).astype(np.float32) * 0.1)
    assert draft.propose() == [103, 107, 103]


def test_audio_far_from_every_token_gives_no_guess():
    rng = np.random.default_rng(0)
    drafter = AudioDrafter(range(50), rng.normal(size=(50, 256)).astype(np.float32))
    assert drafter.draft(rng.normal(size=(20, 256)).astype(np.float32)).propose() == []
    assert drafter.draft(np.zeros((0, 256), np.float32)).propose() == []
    assert drafter.draft(np.zeros((3, 256), np.float32)).propose() == []


def test_spoken_tokens_are_lower_case_words(tokenizer):
    tokens = spoken_tokens(tokenizer, "lower", most=20)
    assert 0 < len(tokens) <= 20
    for token in tokens:
        text = tokenizer.decode([token])
        assert text == text.lower() and any(letter.isalpha() or letter == "'" for letter in text)
