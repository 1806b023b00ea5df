"""Decoders of transformers with their kind of tokenizer: cut, saved, read back by transformers alone, the same in numbers."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_tokenizers import KINDS, TEXT
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from prunella.cli import main
from prunella.pruning.prune_vocabulary import prune_vocabulary
from prunella.speech_llm import load_any

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
}
DECODERS = {
    "qwen2": ("qwen", Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": ("qwen", Qwen3Config, {"head_dim": 8, "tie_word_embeddings": False}),
    "llama 2": ("llama2", LlamaConfig, {}),
    "llama 3": ("llama3", LlamaConfig, {"tie_word_embeddings": True}),
    "smollm2": ("gpt2", LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": ("tekken", MistralConfig, {}),
    "gemma": ("gemma", GemmaConfig, {"head_dim": 8}),
    "gemma2": ("gemma", Gemma2Config, {"head_dim": 8}),
    "gemma3": ("gemma", Gemma3TextConfig, {"head_dim": 8}),
    "phi3": ("llama2", Phi3Config, {}),
    "unigram": ("unigram", LlamaConfig, {}),
}
PADDING = 13  # rows behind the tokenizer's


@pytest.fixture(params=DECODERS)
def folder(request, tmp_path):
    """A checkpoint as the Hub has them, with files of the tokenizer in other forms."""
    kind, config, fields = DECODERS[request.param]
    tokenizer = KINDS[kind]()
    ends = [tokenizer.eos_token_id, len(tokenizer) - 1]
    torch.manual_seed(0)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends,
    }
    size = len(tokenizer) + PADDING
    model = AutoModelForCausalLM.from_config(config(vocab_size=size, **SIZES | fields | ids))
    model.generation_config.eos_token_id = ends
    model.generation_config.suppress_tokens = [ends[1]]
    model.generation_config.max_new_tokens = ends[1]
    out = tmp_path / "whole"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "tokenizer.model").write_bytes(b"the vocabulary of before")
    (out / "LICENSE").write_text("a license")
    return out


@torch.inference_mode()
def test_logits_of_kept_tokens_are_the_whole_models(folder, tmp_path):
    text = tmp_path / "said.txt"
    text.write_text("\n".join(TEXT[1:3]))
    out = tmp_path / "cut"
    assert main(["prune", str(folder), "--keep-vocabulary", str(text), "-o", str(out)]) == 0
    model, whole = (AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32) for one in (out, folder))
    tokenizer, before = (AutoTokenizer.from_pretrained(one) for one in (out, folder))
    assert type(model) is type(whole) and type(tokenizer) is type(before)
    kept = before.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    assert model.config.vocab_size == len(kept) == len(tokenizer) < len(before)
    for line in TEXT[1:3]:
        ids = tokenizer(line)["input_ids"]
        assert [kept[token] for token in ids] == before(line)["input_ids"]
        found = model(torch.tensor([ids])).logits
        expected = whole(torch.tensor([before(line)["input_ids"]])).logits
        torch.testing.assert_close(found, expected[..., kept], atol=1e-5, rtol=1e-5)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        for new, old in ((model.config, whole.config), (model.generation_config, whole.generation_config)):
            assert _moved(getattr(new, name), kept) == getattr(old, name)
        assert _moved(getattr(tokenizer, name, None), kept) == getattr(before, name, None)
    assert _moved(model.generation_config.suppress_tokens, kept) == whole.generation_config.suppress_tokens
    assert model.generation_config.max_new_tokens == whole.generation_config.max_new_tokens
    tied = model.config.tie_word_embeddings
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert not (out / "tokenizer.model").exists() and (out / "LICENSE").exists()
    report = json.loads((out / "pruning.json").read_text())["vocabulary"]
    assert (report["rows_before"], report["rows_after"]) == (whole.config.vocab_size, len(kept))


def _moved(ids, kept):
    if ids is None:
        return None
    return [kept[token] for token in ids] if isinstance(ids, list) else kept[ids]


@torch.inference_mode()
def test_lossless_says_all_that_the_whole_model_says(folder):
    whole = load_any(folder)
    model, report = prune_vocabulary(whole, (), lossless=True)
    assert report.rows_before - report.rows_after >= PADDING
    names = model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer))))
    kept = whole.tokenizer.convert_tokens_to_ids(names)
    for line in TEXT:
        ids, before = (one.tokenizer(line)["input_ids"] for one in (model, whole))
        assert [kept[token] for token in ids] == before
    expected = whole.decoder(torch.tensor([before])).logits[..., kept]
    torch.testing.assert_close(model.decoder(torch.tensor([ids])).logits, expected, atol=1e-5, rtol=1e-5)
