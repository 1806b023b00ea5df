"""Tiny random checkpoints of the stock speech LLM classes, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
)

TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2_048,
    "initializer_range": 0.3,
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 128,
    "initializer_range": 0.2,
}
_CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
# By family: the tokens that its prompt needs; the first is the audio placeholder.
_TOKENS = {
    "qwen3_asr": ["<|audio_pad|>", "<|audio_start|>", "<|audio_end|>"],
    "qwen2_audio": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"],
}
FAMILY_NAMES = tuple(_TOKENS)


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Every byte a token, no merges, with the special tokens of the family; the audio placeholder is 4, <|im_end|> 2."""
    special = [*_CONTROLS, *_TOKENS[family]]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if family == "qwen3_asr":
        core.add_tokens([AddedToken("<asr_text>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>")


def tiny_stock(family: str, *, seed: int = 0, text: dict[str, Any] | None = None) -> PreTrainedModel:
    """A random model of the stock class."""
    torch.manual_seed(seed)
    fields = TEXT | (text or {})
    ends = {"eos_token_id": [0, 2], "pad_token_id": 3}
    model: PreTrainedModel
    if family == "qwen3_asr":
        audio = WHISPER | {"model_type": "qwen3_asr_encoder", "downsample_hidden_size": 8, "output_dim": 64}
        model = Qwen3ASRForConditionalGeneration(
            Qwen3ASRConfig(
                audio_config=audio,
                text_config=fields | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
                audio_token_id=4,
                **ends,
            )
        )
    elif family == "qwen2_audio":
        model = Qwen2AudioForConditionalGeneration(
            Qwen2AudioConfig(
                audio_config=WHISPER | {"model_type": "qwen2_audio_encoder"},
                text_config=fields | {"model_type": "qwen2"},
                audio_token_id=4,
                **ends,
            )
        )
    else:
        raise ValueError(family)
    model.generation_config.eos_token_id = [0, 2]
    model.generation_config.pad_token_id = 3
    return model.eval()


def write_tiny(family: str, folder: Path, **options: Any) -> Path:
    """Save model and tokenizer as a folder from the Hub has them."""
    tiny_stock(family, **options).save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return folder
