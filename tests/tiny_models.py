"""Random speech LLMs, small enough to run in milliseconds: what the rooms' tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

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


def write_ultravox(folder: Path, *, layers: int) -> Path:
    """A checkpoint as Ultravox has them on the Hub: projector weights that name an audio and a text model, beside it here."""
    tokenizer = byte_level_tokenizer()
    prompt = Prompt("U: ", "A:", "<|im_end|>")
    model = tiny_speech_llm(
        tokenizer, seed=0, layers=layers, prompt=prompt, intermediate_size=96, initializer_range=0.1
    )
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
    whisper = WhisperForConditionalGeneration(WhisperConfig(**sizes, **decoder, num_mel_bins=80))
    whisper.model.encoder.load_state_dict(model.audio_encoder.state_dict())
    audio, text = folder.with_name(f"{folder.name}-audio"), folder.with_name(f"{folder.name}-text")
    whisper.save_pretrained(audio)
    model.decoder.save_pretrained(text)
    tokenizer.chat_template = "{% for m in messages %}U:{{ m['content'] }}{% endfor %}A:"
    tokenizer.save_pretrained(text)
    folder.mkdir()
    weights = {f"multi_modal_projector.{k}": v.contiguous() for k, v in model.projector.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    facts = {
        "architectures": ["UltravoxModel"],
        "model_type": "ultravox",
        "audio_model_id": str(audio),
        "text_model_id": str(text),
        "stack_factor": 5,
        "hidden_size": 64,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
    }
    (folder / "config.json").write_text(json.dumps(facts))
    return folder
