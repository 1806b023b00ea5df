"""Random speech LLMs, small enough to run in milliseconds: what the rooms' tests share."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prunella.speech_llm.config import AudioEncoderConfig, Prompt, SpeechLLMConfig
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.process import tune

tune()  # as the command does it: else page faults take longer than the tests


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, no merges; <s>, <pad> and <|im_end|> are 0, 1 and 2."""
    tokens = ["<s>", "<pad>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<pad>")


def tiny_speech_llm(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    layers: int,
    prompt: Prompt,
    hidden: int = 64,
    encoder: AudioEncoderConfig | None = None,
    text_style: str = "as-is",
    **llama: Any,
) -> SpeechLLM:
    """Grouped queries and a tied head; `llama` are further fields of the decoder's configuration."""
    torch.manual_seed(seed)
    fields = {
        "vocab_size": 320,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    decoder = LlamaForCausalLM(LlamaConfig(hidden_size=hidden, num_hidden_layers=layers, **fields | llama))
    config = SpeechLLMConfig(
        audio_encoder=encoder or AudioEncoderConfig(32, 2, 2, 64),
        stack_factor=5,
        projector_hidden_size=64,
        text_hidden_size=hidden,
        prompt=prompt,
        text_style=text_style,
        extra_padding=1_600,
        provenance={"base_model": "tiny"},
    )
    return SpeechLLM(config, decoder, tokenizer).float().eval().requires_grad_(False)
