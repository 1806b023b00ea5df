import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunella.evaluation.word_errors import ErrorCounts, count_errors, normalize, total

WORDS = st.lists(
    st.sampled_from(["the", "cat", "sat", "on", "mat", "dog", "ran", "far", "red", "blue"]),
    min_size=0,
    max_size=12,
)
PAIRS = st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat", "The cat, sat.", ErrorCounts(hits=3)),
        ("the cat sat", "the bat sat", ErrorCounts(hits=2, substitutions=1)),
        ("the cat sat", "cat sat", ErrorCounts(hits=2, deletions=1)),
        ("the cat sat", "the cat sat down now", ErrorCounts(hits=3, insertions=2)),
        ("the cat sat", "", ErrorCounts(deletions=3)),
        ("mister brown owes twenty dollars", "Mr. Brown owes $20", ErrorCounts(hits=4)),
        ("the colour", "the color", ErrorCounts(hits=2)),
    ],
)
def test_counts(reference, hypothesis, expected):
    assert count_errors(reference, hypothesis).words == expected


def test_an_empty_transcript_is_a_failure_and_all_deletions():
    assert count_errors("two words", " ... ").empty
    assert count_errors("two words", " ... ").words == ErrorCounts(deletions=2)
    assert not count_errors("two words", "two").empty


def test_a_reference_that_normalises_to_nothing_counts_insertions():
    assert normalize("um, hmm") == ""
    errors = count_errors("um", "hello there")
    assert errors.words == ErrorCounts(insertions=2)
    assert errors.characters == ErrorCounts(insertions=len("hello there"))
    assert not errors.empty and not count_errors("um", "").empty


@given(PAIRS)
def test_summed_counts_are_those_of_jiwer_over_the_corpus(pairs):
    texts = [(" ".join(reference), " ".join(hypothesis)) for reference, hypothesis in pairs]
    errors = [count_errors(*pair) for pair in texts]
    references = [normalize(reference) for reference, _ in texts]
    hypotheses = [normalize(hypothesis) for _, hypothesis in texts]
    words = total(e.words for e in errors)
    assert words.rate == pytest.approx(jiwer.wer(references, hypotheses))
    assert words.reference == sum(len(reference.split()) for reference in references)
    assert words.hits + words.substitutions + words.insertions == sum(len(h.split()) for h in hypotheses)
    characters = total(e.characters for e in errors)
    assert characters.rate == pytest.approx(jiwer.cer(references, hypotheses))
    assert sum(e.empty for e in errors) == sum(not hypothesis for hypothesis in hypotheses)
