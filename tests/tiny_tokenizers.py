"""Tokenizers of the kinds that decoders have, trained on a page of text in milliseconds."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

TEXT = (
    "the quick brown fox jumps over the lazy dog while the children sing in the garden",
    "turn on the lights in the kitchen and turn off the lights in the bedroom please",
    "what is the weather going to be like tomorrow morning in the mountains",
    "set a timer for twenty five minutes and remind me to call my mother",
    "The Quick Brown Fox said: “Turn on the lights!” She didn't, and they weren't happy.",
    "playing players played plays replay interesting interested interests nation national international",
    "über die Brücke gehen wir nach Hause, où est la bibliothèque, el niño está aquí, 北京和上海的天气",
    "it's five o'clock somewhere, isn't it? 1999 was 27 years before 2026. email: someone@example.com",
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SIZE = 500  # tokens, besides those that are added


def _trained(*steps: Any) -> dict[str, Any]:
    """`model` of a byte-level BPE tokenizer's description behind these pre-tokenizers."""
    import json

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=_SIZE, initial_alphabet=alphabet, show_progress=False)
    )
    model: dict[str, Any] = json.loads(core.to_str())["model"]
    return model


def _every_merge(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs that make a token, the token's number deciding: as tiktoken's and SentencePiece's files are read."""
    pairs = [
        (vocab[token], vocab[token[:at]], vocab[token[at:]], token[:at], token[at:])
        for token in vocab
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]


def gpt2() -> PreTrainedTokenizerFast:
    """SmolLM2's kind: byte-level, digits apart, special tokens within the vocabulary."""
    steps = (pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))
    model = _trained(*steps)
    vocab = {token: place for place, token in enumerate(SPECIAL)}
    vocab |= {token: index + len(SPECIAL) for token, index in model["vocab"].items()}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence(list(steps)), decoders.ByteLevel()
    return _fast(core)


def qwen() -> Qwen2Tokenizer:
    """Qwen2's and Qwen3's: byte-level behind a pattern, special tokens and plain ones behind the vocabulary."""
    model = _trained(
        pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    )
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def llama3() -> PreTrainedTokenizerFast:
    """Byte-level, whole words skip the merges, every pair that makes a token is one; special tokens behind."""
    return _tiktoken(_LLAMA3, behind=True)


def tekken() -> PreTrainedTokenizerFast:
    """Mistral's: the same with cased words, special tokens before."""
    return _tiktoken(_TEKKEN, behind=False)


def _tiktoken(pattern: str, *, behind: bool) -> PreTrainedTokenizerFast:
    steps = (
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    )
    trained = sorted(_trained(*steps)["vocab"].items(), key=lambda item: item[1])
    names = [token for token, _ in trained]
    names = names if behind else [*SPECIAL, *names]
    vocab = {token: index for index, token in enumerate(names)}
    merges = _every_merge({token: index for token, index in vocab.items() if token not in SPECIAL})
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence(list(steps)), decoders.ByteLevel()
    return _fast(core)


def _fast(core: Tokenizer) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )


def _sentencepiece(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Special tokens, bytes, merged pieces, characters; a text begins with a space."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    core.train_from_iterator(TEXT[:-2], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    trained = sorted(core.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    pieces = [token for token, _ in trained if len(token) > 1]
    characters = [token for token, _ in trained if len(token) == 1]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *characters]
    vocab = {token: index for index, token in enumerate(names)}
    return vocab, _every_merge({token: vocab[token] for token in [*pieces, *characters]})


def llama2() -> LlamaTokenizer:
    """SentencePiece's BPE with a space before every text, characters that it does not know as bytes."""
    vocab, merges = _sentencepiece(["<unk>", "<s>", "</s>"])
    return LlamaTokenizer(vocab=vocab, merges=merges, pad_token="</s>")


def gemma() -> GemmaTokenizer:
    """The same without that space, a word never ending before the next one's space."""
    vocab, merges = _sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    return GemmaTokenizer(vocab=vocab, merges=merges)


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's other kind, with bytes for characters that it does not know."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>")


KINDS = {
    "gpt2": gpt2,
    "qwen": qwen,
    "llama3": llama3,
    "tekken": tekken,
    "llama2": llama2,
    "gemma": gemma,
    "unigram": unigram,
}
BYTE_LEVEL = ("gpt2", "qwen", "llama3", "tekken")
