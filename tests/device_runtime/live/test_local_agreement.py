"""Partial text only grows, whatever the guesses do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prunella.device_runtime.live.local_agreement import LocalAgreement


def test_a_word_is_shown_once_two_guesses_agree():
    agreement = LocalAgreement()
    assert not agreement.update("turn of")
    assert agreement.update("turn off the")
    assert agreement.text == "turn"
    assert agreement.update("turn off the light")
    assert agreement.text == "turn off the"
    assert not agreement.update("burn off the light")
    assert not agreement.update("burn off the light please")
    assert agreement.text == "turn off the"
    assert not agreement.update("turn off the light")
    assert agreement.update("turn off the light")


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=5).map(" ".join), max_size=12))
def test_shown_text_is_never_taken_back(guesses):
    agreement = LocalAgreement()
    shown = ""
    for guess in guesses:
        grew = agreement.update(guess)
        assert agreement.text.startswith(shown)
        assert grew == (agreement.text != shown)
        shown = agreement.text
