"""Taking tokens out of a tokenizer so that what is left still spells every text, and spells text of kept tokens as before.

A BPE tokenizer applies its merges by rank. Inside a final token the merges are those that make the token alone, so that a
text whose tokens are all kept, with the parts that their own merges make on the way, meets the same merges in the same
order whatever else is cut. A Unigram tokenizer takes the best way through a text, which stays the best among fewer.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_SPACE = "\u2581"  # SentencePiece's
_BYTES = 256
_MARK = "prunella_cut_vocabulary"


class TokenizerParts:
    """What a tokenizer's own description (`tokenizer.json`) says of how its tokens are made.

    Attributes:
        names: id → token of the model, added tokens not among them unless the model has them too.
        added: id → token that is looked for in a text before anything else, special or not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read it.

        Raises:
            CheckpointError: of a kind that cannot be cut, or that cannot be read.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise CheckpointError(
                f"a {type(tokenizer).__name__} has no description of the library tokenizers, which a vocabulary is cut in: "
                "take a model with a tokenizer.json"
            )
        self.body: dict[str, Any] = json.loads(backend.to_str())
        model = self.body["model"]
        self.kind: str = model["type"]
        if self.kind not in ("BPE", "Unigram"):
            raise CheckpointError(
                f"a {self.kind} tokenizer cannot be cut: BPE (byte-level or SentencePiece's) and Unigram are"
            )
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise CheckpointError(
                "this BPE tokenizer marks the pieces of a word by a prefix or suffix, as CLIP's does, and cannot be cut"
            )
        self.added: dict[int, str] = {entry["id"]: entry["content"] for entry in self.body["added_tokens"]}
        if self.kind == "Unigram":
            self.names = {index: str(token) for index, (token, _) in enumerate(model["vocab"])}
        else:
            self.names = {index: str(token) for token, index in model["vocab"].items()}
        self.ids = {token: index for index, token in self.names.items()}
        self.unknown: int | None = (
            model.get("unk_id") if self.kind == "Unigram" else self.ids.get(model.get("unk_token"))
        )
        self._ranks: dict[tuple[str, str], int] = {}
        self._makers: dict[str, list[tuple[str, str]]] = {}
        for rank, merge in enumerate(model.get("merges", ())):
            left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
            self._ranks.setdefault((left, right), rank)
            self._makers.setdefault(left + right, []).append((left, right))
        self._halves: dict[str, tuple[str, str] | None] = {}
        self.byte_level = _has_step(self.body["pre_tokenizer"], "ByteLevel") or _has_step(
            self.body["decoder"], "ByteLevel"
        )

    def indispensable(self) -> set[int]:
        """Added tokens, the unknown one, and the pieces that spell every text: bytes where it knows them, else characters."""
        singles = (
            [token for token in self.ids if len(token) == 1]
            if self.byte_level
            else [token for token in self.ids if _is_byte(token)]
        )
        if len(singles) < _BYTES:  # not all bytes can be spelled: every character counts
            singles += [token for token in self.ids if len(token) == 1 and token not in singles]
        kept = {self.ids[token] for token in singles} | set(self.added)
        if self.ids.get(_SPACE) is not None:
            kept.add(self.ids[_SPACE])
        return kept if self.unknown is None else kept | {self.unknown}

    def parts(self, token: int) -> set[int]:
        """The token, and all that its merges make on the way to it; itself alone where no merges lead there."""
        found: set[int] = set()
        name = self.names.get(token)
        if name is None or self.kind == "Unigram":
            return {token}
        pending = [name]
        while pending:
            one = pending.pop()
            if self.ids[one] in found:
                continue
            found.add(self.ids[one])
            pending += self._halves_of(one) or ()
        return found

    def unreachable(self) -> set[int]:
        """Tokens of the model that no text is ever encoded to: their own merges lead elsewhere, and no whole word is they."""
        if self.kind == "Unigram":
            return set()
        if self.body["model"].get("ignore_merges"):
            return set()  # a text that is the token and nothing else is encoded to it
        safe = self.indispensable()
        return {
            index
            for index, name in self.names.items()
            if index not in safe and len(name) > 1 and self._halves_of(name) is None
        }

    def text(self, token: int) -> bytes:
        """What the token stands for in a text, as UTF-8, which a token may hold a part of."""
        name = self.names.get(token, self.added.get(token, ""))
        if token in self.added:
            return self.added[token].encode()
        if self.byte_level:
            return bytes(_BYTE_OF.get(character, 32) for character in name)
        if _is_byte(name):
            return bytes([int(name[3:5], 16)])
        return name.replace(_SPACE, " ").encode()

    def _halves_of(self, name: str) -> tuple[str, str] | None:
        """The pair that is merged last where a token is made of its characters; None: it is made of none, or not made."""
        if name not in self._halves:
            makers = self._makers.get(name, ())
            self._halves[name] = self._last_merge(name) if makers else None
        return self._halves[name]

    def _last_merge(self, name: str) -> tuple[str, str] | None:
        symbols = list(name)
        last = None
        while len(symbols) > 1:
            pairs = itertools.pairwise(symbols)
            ranked = [(self._ranks[pair], place) for place, pair in enumerate(pairs) if pair in self._ranks]
            if not ranked:
                return None
            _, place = min(ranked)
            last = (symbols[place], symbols[place + 1])
            symbols[place : place + 2] = ["".join(last)]
        return last


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Collection[int]) -> PreTrainedTokenizerBase:
    """A tokenizer of the same class with these tokens alone, numbered from 0 in their old order.

    Args:
        tokenizer: left as it was.
        kept: ids; what the caller leaves out of `TokenizerParts.indispensable` and `parts`, texts are no longer spelled by.

    Raises:
        CheckpointError: of a kind that cannot be cut, or what the class made of the description has other tokens.
    """
    parts = TokenizerParts(tokenizer)
    known = sorted((parts.names.keys() | parts.added.keys()) & set(kept))
    places = {old: new for new, old in enumerate(known)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for stale in folder.iterdir():  # the vocabulary in other forms
            ours = stale.name in (TOKENIZER_FILE, _CONFIG_FILE) or stale.suffix == ".jinja"
            if stale.is_file() and not ours:
                stale.unlink()
        body = _cut_description(parts, places)
        (folder / TOKENIZER_FILE).write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
        _renumber_config(folder / _CONFIG_FILE, places)
        made: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(folder)
    made.name_or_path = made.init_kwargs["name_or_path"] = ""
    setattr(made, _MARK, True)
    for old, new in places.items():
        if made.convert_ids_to_tokens(new) != tokenizer.convert_ids_to_tokens(old):
            raise CheckpointError(
                f"cut, a {type(tokenizer).__name__} says {made.convert_ids_to_tokens(new)!r} for token {new}, which should be "
                f"{tokenizer.convert_ids_to_tokens(old)!r}: this class cannot be cut"
            )
    return made


def is_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it was made here: no folder has it in other forms, such as `tokenizer.model`."""
    return hasattr(tokenizer, _MARK)


def _cut_description(parts: TokenizerParts, places: dict[int, int]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(json.dumps(parts.body))
    model = body["model"]
    if parts.kind == "Unigram":
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in places]
        model["unk_id"] = None if parts.unknown is None else places[parts.unknown]
    else:
        left = {token for token, index in parts.ids.items() if index in places}
        model["vocab"] = {token: places[index] for token, index in model["vocab"].items() if index in places}
        pairs = ((merge, tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ", 1)))
                 for merge in model["merges"])  # fmt: skip
        model["merges"] = [
            merge for merge, (one, two) in pairs if one in left and two in left and one + two in left
        ]
    body["added_tokens"] = [
        entry | {"id": places[entry["id"]]} for entry in body["added_tokens"] if entry["id"] in places
    ]
    named = parts.names | parts.added
    _renumber_processor(body.get("post_processor"), {named[old]: new for old, new in places.items()})
    if body.get("padding"):
        body["padding"]["pad_id"] = places.get(body["padding"]["pad_id"], 0)
    body["truncation"] = None
    return body


def _renumber_processor(step: dict[str, Any] | None, ids: dict[str, int]) -> None:
    """Post-processors name the tokens that they put around a text, with their numbers."""
    if not step:
        return
    for inner in step.get("processors", ()):
        _renumber_processor(inner, ids)
    for entry in (step.get("special_tokens") or {}).values():
        entry["ids"] = [ids[token] for token in entry["tokens"]]
    for key in ("sep", "cls"):
        if key in step:
            step[key] = [step[key][0], ids[step[key][0]]]


def _renumber_config(path: Path, places: dict[int, int]) -> None:
    """`added_tokens_decoder` of `tokenizer_config.json` is by number."""
    body = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(table := body.get("added_tokens_decoder"), dict):
        body["added_tokens_decoder"] = {
            str(places[int(old)]): entry for old, entry in table.items() if int(old) in places
        }
    path.write_text(json.dumps(body, ensure_ascii=False, indent=2), encoding="utf-8")


def _has_step(step: dict[str, Any] | None, kind: str) -> bool:
    if not step:
        return False
    inner: Iterable[dict[str, Any]] = [*step.get("pretokenizers", ()), *step.get("decoders", ())]
    return step["type"] == kind or any(_has_step(one, kind) for one in inner)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letter of every byte: the printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(_BYTES + place): byte for place, byte in enumerate(others)
    }


_BYTE_OF = _byte_alphabet()
