"""A Hugging Face tokenizer as llama.cpp's vocabulary: byte-level BPE (GPT-2 kind) or SentencePiece BPE (Llama 2 kind).

What counts is the tokenizer's own description (`tokenizer.json`), not the model's name: a pre-tokenizer that
llama.cpp has under no name is refused, and the gate compares the tokens of hard text on both sides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
)
# A byte-level tokenizer's splitting pattern, and whether whole words skip the merges → llama.cpp's name.
_SPLITS = {
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + r"\p{N}{1,3}" + _REST, False): "smaug-bpe",
    (_CASED + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+", True): "tekken",
}
_UNUSED_SCORE = -1e6


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to tokenise. `tokens`, `types` and (SentencePiece) `scores` are as long as the embedding table."""

    model: str  # `tokenizer.ggml.model`: "gpt2" or "llama"
    pre: str  # `tokenizer.ggml.pre`
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    add_space_prefix: bool = False
    first_only: bool = False  # the space goes before a text, not behind a special token in it as in llama.cpp


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """Translate a tokenizer.

    Args:
        tokenizer: of the decoder.
        size: rows of the embedding table; ids without a token become unused ones.

    Raises:
        CheckpointError: llama.cpp has no tokenizer of this kind.
    """
    body = json.loads(tokenizer.backend_tokenizer.to_str())
    model = body["model"]
    if model["type"] != "BPE":
        raise CheckpointError(
            f"a {model['type']} tokenizer is not written to GGUF (BPE is): take the onnx engine"
        )
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ", 1)) for merge in model["merges"]
    ]
    added = {entry["id"]: entry for entry in body["added_tokens"]}
    names = {index: token for token, index in model["vocab"].items()}
    if max([*names, *added]) >= size:
        raise CheckpointError(
            f"the tokenizer has ids up to {max([*names, *added])}, the embedding table {size} rows"
        )
    steps = _flatten(body["pre_tokenizer"])
    if any(step["type"] == "ByteLevel" for step in steps):
        tokens, types = _tokens(names, added, size, unknown=None)
        pre = _pre_tokenizer(steps, bool(model.get("ignore_merges")))
        return Vocabulary("gpt2", pre, tokens, types, merges=tuple(" ".join(merge) for merge in merges))
    if not model.get("byte_fallback"):
        raise CheckpointError(
            "this BPE tokenizer is neither byte-level nor falls back to bytes, llama.cpp has none such: "
            "take the onnx engine"
        )
    tokens, types = _tokens(names, added, size, unknown=model.get("unk_token"))
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        _scores(tokens, merges),
        add_space_prefix=_adds_space(body),
        first_only=any(step.get("prepend_scheme") == "first" for step in steps),
    )


def lead_in(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token that takes no space from what is beside it; empty where there is none."""
    added = tokenizer.added_tokens_decoder.values()
    return next((one.content for one in added if one.special and not (one.lstrip or one.rstrip)), "")


def _tokens(
    names: dict[int, str], added: dict[int, Any], size: int, *, unknown: str | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens, types = [], []
    for index in range(size):
        if index in added:
            token, kind = added[index]["content"], TokenType.USER_DEFINED
            if added[index]["special"]:
                kind = TokenType.UNKNOWN if token == unknown else TokenType.CONTROL
        elif index in names:
            token, kind = names[index], TokenType.NORMAL
            if unknown is not None and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                kind = TokenType.BYTE
            elif token == unknown:
                kind = TokenType.UNKNOWN
        else:
            token, kind = f"[PAD{index}]", TokenType.UNUSED
        tokens.append(token)
        types.append(int(kind))
    return tuple(tokens), tuple(types)


def _scores(tokens: tuple[str, ...], merges: list[tuple[str, ...]]) -> tuple[float, ...]:
    """SentencePiece merges the pair whose union scores best: the rank of the first merge that makes a token is its score."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return tuple(-float(ranks[token]) if token in ranks else _UNUSED_SCORE for token in tokens)


def _adds_space(body: dict[str, Any]) -> bool:
    normalizers = _flatten(body["normalizer"], "normalizers")
    prefixes = [step for step in normalizers if step["type"] == "Prepend"]
    metaspaces = [step for step in _flatten(body["pre_tokenizer"]) if step["type"] == "Metaspace"]
    return bool(prefixes) or any(step.get("prepend_scheme", "always") != "never" for step in metaspaces)


def _pre_tokenizer(steps: list[dict[str, Any]], ignore_merges: bool) -> str:
    kinds = [step["type"] for step in steps]
    byte_level = steps[-1]
    if byte_level.get("add_prefix_space"):
        raise CheckpointError("llama.cpp's byte-level tokenizers put no space before a text, this one does")
    if byte_level.get("use_regex", True) and not ignore_merges:
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
            return "smollm"
    elif kinds == ["Split", "ByteLevel"] and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
        pattern = steps[0]["pattern"].get("Regex", "")
        if (pattern, ignore_merges) in _SPLITS:
            return _SPLITS[pattern, ignore_merges]
    raise CheckpointError(
        f"llama.cpp has no name for this tokenizer's pre-tokenizer ({' + '.join(kinds)}): take the onnx engine, or "
        "add its pattern to _SPLITS in export/gguf_vocabulary.py"
    )


def _flatten(step: dict[str, Any] | None, key: str = "pretokenizers") -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for part in step[key] for inner in _flatten(part, key)]
    return [step]
