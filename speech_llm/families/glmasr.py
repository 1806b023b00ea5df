"""GLM-ASR: a Whisper encoder with rotary positions over whole 30 s, four frames to a token, a Llama decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.bundle import PromptSpec
from prunella.speech_llm.families.chat_prompt import AUDIO, rendered, says, split_at_audio
from prunella.speech_llm.families.family import AudioGeometry, Family, attention_bias, language_model
from prunella.speech_llm.families.whole_windows import StackingProjector, strided_front, window_geometry

_FRAMES_PER_TOKEN = 4  # `merge_factor`, which the stock class counts tokens by
_INSTRUCTION = "Please transcribe this audio into text"  # of `GlmAsrProcessor`
_USUAL_PROMPT = (
    "<|user|>\n<|begin_of_audio|><|pad|><|end_of_audio|><|user|>\n" + _INSTRUCTION + "<|assistant|>\n"
)


class RotaryEncoder(nn.Module):
    """`GlmAsrEncoder`, which hears 30 s and masks nothing; of a model healed on trimmed audio, over the true length."""

    def __init__(self, tower: PreTrainedModel, trimmed: bool) -> None:
        super().__init__()
        self.tower = tower
        self.trimmed = trimmed

    def forward(self, log_mel: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, bins, frames), frames 3000 unless trimmed; `valid` (batch,) → (batch, frames / 2, hidden_size)."""
        tower: Any = self.tower
        heard = valid if self.trimmed else None
        hidden = strided_front(tower, log_mel, heard)
        length = hidden.shape[1]
        places = torch.arange(length, device=hidden.device)[None]
        rotary = tower.rotary_emb(hidden, position_ids=places)
        mask = None if heard is None else attention_bias((heard + 1) // 2, length, hidden.dtype)
        for layer in tower.layers:
            hidden = layer(hidden, position_embeddings=rotary, attention_mask=mask)
        normed: torch.Tensor = tower.norm(hidden)
        return normed


def _geometry(config: Any, trimmed: bool) -> AudioGeometry:
    audio = config.audio_config
    return window_geometry(
        num_mel_bins=audio.num_mel_bins,
        width=audio.hidden_size,
        frames_per_token=_FRAMES_PER_TOKEN,
        trimmed=trimmed,
        valid="ceil",
    )


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    model: Any = stock.model
    width = stock.config.audio_config.intermediate_size
    return RotaryEncoder(model.audio_tower, trimmed), StackingProjector(model.multi_modal_projector, width)


def _prompt(
    config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, eos_ids: tuple[int, ...]
) -> PromptSpec:
    messages = [{"role": "user", "content": [AUDIO, says(_INSTRUCTION)]}]
    usual = _USUAL_PROMPT.replace("<|pad|>", str(tokenizer.convert_ids_to_tokens(config.audio_token_id)))
    text = rendered(tokenizer, folder, messages, usual, config.audio_token_id, add_generation_prompt=True)
    return split_at_audio(text, tokenizer, config.audio_token_id, eos_ids)


FAMILY = Family(
    model_type="glmasr",
    architecture="GlmAsrForConditionalGeneration",
    since="5.0",
    geometry=_geometry,
    audio_half=_audio_half,
    prompt=_prompt,
    as_causal_lm=language_model,
    true_length=False,
    mmproj="glma",
)
