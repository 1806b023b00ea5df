"""Cuts of the vocabulary: what texts are spelled with before and behind them, and what the smaller model says."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_speech_llm
from tiny_tokenizers import BYTE_LEVEL, KINDS, TEXT

from prunella.device_runtime.base.errors import UsageError
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune, save_pruned
from prunella.pruning.prune_vocabulary import prune_vocabulary
from prunella.pruning.vocabulary import choose_tokens
from prunella.speech_llm import load
from prunella.speech_llm.config import Prompt
from prunella.speech_llm.tokenizer_surgery import TokenizerParts, cut_tokenizer

SAID = TEXT[1:3]  # what is to be spelled as before


def encoded(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@cache
def cut_kind(kind):
    """A tokenizer, what is left of it for SAID, and the old numbers of what is left."""
    tokenizer = KINDS[kind]()
    parts = TokenizerParts(tokenizer)
    kept = parts.indispensable()
    for text in SAID:
        for token in encoded(tokenizer, text):
            kept |= parts.parts(token)
    return tokenizer, cut_tokenizer(tokenizer, kept), sorted(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_kept_tokens_is_spelled_as_before(kind):
    tokenizer, cut, kept = cut_kind(kind)
    assert len(cut) == len(kept) < len(tokenizer)
    for text in SAID:
        assert [kept[token] for token in encoded(cut, text)] == encoded(tokenizer, text)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_words_of_kept_tokens_are_spelled_as_before(kind, data):
    """Words in any order, their parts, and whatever else the whole tokenizer spells with kept tokens."""
    tokenizer, cut, kept = cut_kind(kind)
    words = [word[: data.draw(st.integers(1, 9))] for word in " ".join(SAID).split()]
    text = " ".join(data.draw(st.lists(st.sampled_from(words), max_size=8)))
    before = encoded(tokenizer, text)
    if set(before) <= set(kept):
        assert [kept[token] for token in encoded(cut, text)] == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unigram"])
@given(text=st.text(max_size=40) | st.sampled_from(TEXT))
def test_any_text_comes_back_as_from_the_whole_tokenizer(kind, text):
    tokenizer, cut, _ = cut_kind(kind)
    assert cut.decode(encoded(cut, text)) == tokenizer.decode(encoded(tokenizer, text))


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@given(text=st.text(max_size=40))
def test_any_text_round_trips_through_bytes(kind, text):
    _, cut, _ = cut_kind(kind)
    whole = cut.backend_tokenizer.normalizer
    expected = whole.normalize_str(text) if whole else text
    assert cut.backend_tokenizer.decode(encoded(cut, text), skip_special_tokens=False) == expected


@pytest.fixture
def speech_llm():
    return tiny_speech_llm(
        KINDS["gpt2"](), seed=0, layers=4, prompt=Prompt("U: ", "A:", "<|im_end|>"), text_style="lower",
        vocab_size=560, initializer_range=0.2, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip


@torch.inference_mode()
def test_a_speech_llm_is_cut_saved_and_read_back(speech_llm, tmp_path):
    choice = choose_tokens(speech_llm, SAID)
    cut, report = prune_vocabulary(speech_llm, SAID)
    assert report.tokens_after == cut.decoder.config.vocab_size == len(choice.kept)
    save_pruned(cut, report, tmp_path / "cut")
    again = load(tmp_path / "cut")
    assert again.prompt == cut.prompt
    assert [choice.kept[token] for token in again.prompt.before_ids] == list(speech_llm.prompt.before_ids)
    tokens = torch.tensor([encoded(speech_llm.tokenizer, SAID[0])])
    fewer = torch.tensor([encoded(again.tokenizer, SAID[0])])
    whole = speech_llm.decoder(tokens).logits[..., list(choice.kept)]
    torch.testing.assert_close(again.decoder(fewer).logits, whole)
    assert again.config.provenance["vocabulary"][0]["tokens_after"] == report.tokens_after


@torch.inference_mode()
def test_layers_and_vocabulary_may_be_cut_in_any_order(speech_llm):
    block = [Block(1, 2)]
    words_first, _ = prune(prune_vocabulary(speech_llm, SAID)[0], block)
    layers_first, _ = prune_vocabulary(prune(speech_llm, block)[0], SAID)
    tokens = torch.arange(30)[None]
    assert torch.equal(words_first.decoder(tokens).logits, layers_first.decoder(tokens).logits)
    assert words_first.prompt == layers_first.prompt


def test_the_most_used_are_kept_and_the_floor_is_named(speech_llm):
    choice = choose_tokens(speech_llm, SAID)
    fewer = choose_tokens(speech_llm, SAID, keep_tokens=choice.floor + 10)
    assert set(fewer.kept) < set(choice.kept)
    assert choice.floor < len(fewer.kept) <= choice.floor + 10
    with pytest.raises(UsageError, match=f"are {choice.floor} already"):
        choose_tokens(speech_llm, SAID, keep_tokens=choice.floor - 1)
    with pytest.raises(UsageError, match="no text"):
        choose_tokens(speech_llm, [" "])


def test_lossless_keeps_what_the_style_can_write(speech_llm):
    kept = choose_tokens(speech_llm, (), lossless=True).kept
    names = set(speech_llm.tokenizer.convert_ids_to_tokens(list(kept)))
    for text in TEXT:
        said = encoded(speech_llm.tokenizer, speech_llm.said(text))
        assert set(said) <= set(kept)
    assert "Ġlights" in names and "Turn" not in names and "://" not in names
