"""llama.cpp spells with fewer tokens what the cut tokenizer spells, in every kind that it has."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from tiny_models import tiny_speech_llm
from tiny_tokenizers import KINDS, TEXT

from prunella.export.gguf_decoder import write_decoder
from prunella.export.gguf_gate import check_decoder_file, check_tokenizer
from prunella.pruning.prune_vocabulary import prune_vocabulary
from prunella.speech_llm.config import Prompt

pytestmark = pytest.mark.native


@pytest.mark.parametrize("kind", ["qwen", "llama3", "tekken", "gemma"])
def test_hard_text_has_the_same_tokens_on_both_sides(kind, tmp_path):
    tokenizer = KINDS[kind]()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = tiny_speech_llm(
        tokenizer, seed=0, layers=1, prompt=Prompt("user: ", " say it: ", tokenizer.eos_token),
        vocab_size=len(tokenizer) + 7, intermediate_size=96, **ids,
    )  # fmt: skip
    cut, report = prune_vocabulary(model, TEXT[1:3])
    assert report.tokens_after < report.tokens_before
    path = write_decoder(cut, tmp_path / "decoder-F16.gguf")
    check_decoder_file(cut, path)
    check_tokenizer(cut, path)
