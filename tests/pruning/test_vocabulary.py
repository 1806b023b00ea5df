"""Cuts of the vocabulary: what texts are spelled with before and behind them, and what the smaller model says."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_speech_llm
from tiny_tokenizers import BYTE_LEVEL, KINDS, TEXT
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from prunella.device_runtime.base.errors import CheckpointError, ManifestError, UsageError
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune, save_pruned
from prunella.pruning.prune_vocabulary import prune_vocabulary
from prunella.pruning.spelling import spelling
from prunella.pruning.vocabulary import choose_tokens, read_texts
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


@pytest.mark.step("vocabulary", family="ultravox")
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


def test_lossless_keeps_what_a_cased_model_reaches(speech_llm):
    """No text is encoded to a token whose own merges lead elsewhere; rows without a token say nothing."""
    speech_llm.config = replace(speech_llm.config, text_style="as-is")
    kept = choose_tokens(speech_llm, (), lossless=True).kept
    assert len(kept) == len(speech_llm.tokenizer) < speech_llm.view.vocab_size
    cut, _ = prune_vocabulary(speech_llm, (), lossless=True)
    assert cut.view.vocab_size == len(kept)


def test_tokens_that_no_text_is_encoded_to():
    core = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5, "cb": 6},
                                merges=[("b", "c"), ("a", "b"), ("ab", "c")]))  # fmt: skip
    parts = TokenizerParts(PreTrainedTokenizerFast(tokenizer_object=core))
    # "abc" is a + bc, which no merge joins; "cb" has no merge at all.
    assert {parts.names[token] for token in parts.unreachable()} == {"abc", "cb"}
    assert core.encode("abc").tokens == ["a", "bc"]


def test_kinds_that_cannot_be_cut_are_refused_in_words():
    for core, word in (
        (Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "a WordLevel tokenizer cannot be cut"),
        (Tokenizer(models.WordPiece({"a": 0}, unk_token="a")), "a WordPiece tokenizer cannot be cut"),
        (Tokenizer(models.BPE({"a": 0}, [], end_of_word_suffix="</w>")), "by a prefix or suffix"),
    ):
        with pytest.raises(CheckpointError, match=word):
            TokenizerParts(PreTrainedTokenizerFast(tokenizer_object=core))


def test_spelling_counts_words_in_more_pieces():
    tokenizer, cut, _ = cut_kind("gpt2")
    same = spelling(tokenizer, cut, SAID)
    assert same.in_more_pieces == 0 and same.tokens_before == same.tokens_after
    more = spelling(tokenizer, cut, [*SAID, "interesting nation"])
    assert 0 < more.in_more_pieces < 1 and more.tokens_after > more.tokens_before


def test_texts_are_lines_or_transcripts(tmp_path):
    (tmp_path / "plain.txt").write_text("one line\n\nanother\n")
    rows = [{"audio_filepath": "gone.wav", "duration": 1, "text": "what is said"}]
    (tmp_path / "speech.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_texts([tmp_path / "plain.txt", tmp_path / "speech.jsonl"])
    assert found == ["one line", "another", "what is said"]
    (tmp_path / "other.jsonl").write_text('{"words": 1}\n')
    with pytest.raises(ManifestError, match=r"other\.jsonl:1: not a JSON object"):
        read_texts([tmp_path / "other.jsonl"])


def test_a_row_that_the_configuration_names_stays_without_a_token(speech_llm):
    speech_llm.decoder.generation_config.suppress_tokens = [3, 555]
    cut, report = prune_vocabulary(speech_llm, SAID)
    assert report.rows_after == report.tokens_after + 1 == len(cut.tokenizer) + 1
    assert cut.decoder.generation_config.suppress_tokens[1] == len(cut.tokenizer)
    row = cut.view.embeddings.weight[len(cut.tokenizer)]
    assert torch.equal(row, speech_llm.view.embeddings.weight[555])
    assert speech_llm.decoder.generation_config.suppress_tokens == [3, 555]
