"""Voxtral's folders on the Hub have Mistral's tekken.json and no tokenizer.json."""

from __future__ import annotations

import base64
import json
import shutil
import sys

import pytest
from tiny_families import tiny_stock, write_tiny

from prunella.device_runtime.base.errors import CheckpointError
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune, save_pruned
from prunella.pruning.prune_vocabulary import prune_vocabulary
from prunella.speech_llm import load
from prunella.speech_llm.folder_tokenizer import read_tokenizer
from prunella.speech_llm.model_folder import float_bytes

SPECIAL = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    11: "<pad>",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    34: "[TRANSCRIBE]",
}
COUNT = 40
MERGED = ["he", "ll", "hell", "hello", " w", "lang", ":e", ":en", "é"]
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def tekken() -> dict:
    """The file in small: 256 bytes, a few merges, special tokens at the ranks that Mistral gives them; five rows of padding."""
    pieces = [bytes([byte]) for byte in range(256)] + [text.encode() for text in MERGED]
    padding = [f"padding{row}".encode() for row in range(5)]
    return {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(pieces) + len(padding),
            "default_vocab_size": COUNT + len(pieces),
            "default_num_special_tokens": COUNT,
            "version": "v7",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate([*pieces, *padding])
        ],
        "special_tokens": [
            {"rank": rank, "token_str": SPECIAL.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
            for rank in range(max(SPECIAL) + 1)
        ],
    }


@pytest.fixture
def folder(tmp_path):
    stock = tiny_stock("voxtral", rest={"audio_token_id": 24, "eos_token_id": 2, "pad_token_id": 11})
    stock.generation_config.eos_token_id, stock.generation_config.pad_token_id = 2, 11
    stock.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tekken.json").write_text(json.dumps(tekken()))
    return tmp_path / "model"


def piece(text: str) -> int:
    return COUNT + 256 + MERGED.index(text)


def test_text_becomes_the_ranks_of_the_file(folder):
    tokenizer = read_tokenizer(folder)
    assert tokenizer("hello world", add_special_tokens=False)["input_ids"] == [
        piece("hello"),
        piece(" w"),
        *(COUNT + ord(sign) for sign in "orld"),
    ]
    assert tokenizer("lang:en", add_special_tokens=False)["input_ids"] == [piece("lang"), piece(":en")]
    for text in ("hello", " Grüße, 世界 🙂\n\t", "é e\u0301", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and all(token >= COUNT for token in ids)
    assert len(tokenizer) == COUNT + 256 + len(MERGED)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 11)


def test_the_prompt_is_mistrals_transcription_request(folder):
    """In the order of `encode_transcription` in mistral-common."""
    prompt = load(folder).prompt
    assert prompt.before_ids == (1, 3, 25) and prompt.after_ids == (4, 34)
    english = prompt.with_language("English")
    assert english.after_ids == (4, piece("lang"), piece(":en"), 34)
    assert english.after_audio == "[/INST]lang:en[TRANSCRIBE]"
    assert prompt.eos_ids == (2,)


def test_a_cut_model_keeps_both_files_and_the_same_tokens(folder, tmp_path):
    model = load(folder)
    pruned, report = prune(model, (Block(2, 4),), bridge=False)
    save_pruned(pruned, report, tmp_path / "cut")
    assert (tmp_path / "cut" / "tekken.json").read_bytes() == (folder / "tekken.json").read_bytes()
    again = load(tmp_path / "cut")
    assert again.prompt == model.prompt
    text = "hello é 世界"
    assert again.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    assert again.tokenizer.eos_token_id == 2


def test_a_cut_vocabulary_leaves_mistrals_file_behind(folder, tmp_path):
    """It has the tokens of before; what transformers made of it is cut and saved as `tokenizer.json`."""
    model = load(folder)
    cut, report = prune_vocabulary(model, ["hello world"])
    save_pruned(cut, report, tmp_path / "cut")
    assert not (tmp_path / "cut" / "tekken.json").exists()
    again = load(tmp_path / "cut")
    assert again.prompt == cut.prompt and again.view.vocab_size == len(again.tokenizer) < len(model.tokenizer)
    for text in ("hello world", " Grüße, 世界 🙂\n\t", "é e\u0301"):
        assert again.tokenizer.decode(again.tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    names = again.tokenizer.convert_ids_to_tokens(again.tokenizer("hello world")["input_ids"])
    assert names == model.tokenizer.convert_ids_to_tokens(model.tokenizer("hello world")["input_ids"])


def test_where_both_files_are_the_common_one_is_read(tmp_path):
    folder = write_tiny("voxtral", tmp_path / "model")
    (folder / "tekken.json").write_text("{}")
    assert read_tokenizer(folder).convert_tokens_to_ids("[AUDIO]") == 4


def test_weights_in_mistrals_layout_beside_the_others_count_once(folder):
    """The Hub's folders hold both."""
    alone = float_bytes(folder)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert float_bytes(folder) == alone > 0
    (folder / "model.safetensors").unlink()
    assert float_bytes(folder) == alone


def test_what_cannot_be_read_is_said(folder, monkeypatch):
    (folder / "tekken.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"tekken.json is damaged \(KeyError.*: download or copy it again"
    ):
        load(folder)
    monkeypatch.setitem(sys.modules, "transformers.integrations.mistral", None)
    monkeypatch.delattr("transformers.integrations.mistral", raising=False)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, .*transformers>=5\.15"):
        load(folder)
