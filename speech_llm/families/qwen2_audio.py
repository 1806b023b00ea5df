"""Qwen2-Audio: Whisper's encoder with pairs of frames averaged, one matrix, a Qwen2 decoder (or any other)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.bundle import AudioSpec, FeatureSpec, PromptSpec
from prunella.speech_llm.families.chat_prompt import AUDIO, rendered, says, split_at_audio
from prunella.speech_llm.families.family import AudioGeometry, Family, attention_bias, language_model

_FRAMES_PER_TOKEN = 4  # features': the second convolution has stride 2, the mean is of two
_HOP = 160
INSTRUCTION = "Transcribe the speech."
_USUAL_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
)


class PooledWhisperEncoder(nn.Module):
    """`Qwen2AudioEncoder` over the audio's true length: the stock forward insists on 30 s, and masks what is behind it."""

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, log_mel: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, bins, frames), frames a multiple of 4; `valid` (batch,) → (batch, frames / 4, d_model).

        The last valid row hears the two frames behind the audio, which must be those of silence.
        """
        tower: Any = self.tower
        hidden = nn.functional.gelu(tower.conv1(log_mel))
        hidden = nn.functional.gelu(tower.conv2(hidden)).transpose(1, 2)
        length = hidden.shape[1]
        hidden = hidden + tower.embed_positions.weight[:length]
        mask = None if valid is None else attention_bias((valid + 1) // 2, length, hidden.dtype)
        for layer in tower.layers:
            output = layer(hidden, attention_mask=mask)
            hidden = output[0] if isinstance(output, tuple) else output
        pooled = tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2)
        normed: torch.Tensor = tower.layer_norm(pooled)
        return normed


def pooled_rows(valid: Any) -> Any:
    """Encoder frames of so many feature frames: `Qwen2AudioEncoder._get_feat_extract_output_lengths`."""
    return (valid + 1) // 2 // 2


def pooled_geometry(config: Any, trimmed: bool) -> AudioGeometry:
    """Of a Whisper encoder that is masked behind the audio and averages pairs of frames."""
    audio = config.audio_config
    token = _FRAMES_PER_TOKEN * _HOP
    # Three frames of silence at least are behind the audio: the last row hears two of them.
    features = FeatureSpec(num_mel_bins=audio.num_mel_bins, multiple=token, extra=token, valid="ceil")
    return AudioGeometry(
        audio=AudioSpec(features=features, samples_per_token=token),
        encoder_width=audio.d_model,
        frames_per_token=1,
        samples_per_frame=token,
        encoder_frames=pooled_rows,
    )


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    return PooledWhisperEncoder(stock.model.audio_tower), stock.model.multi_modal_projector


def _prompt(
    config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, eos_ids: tuple[int, ...]
) -> PromptSpec:
    messages = [{"role": "user", "content": [AUDIO, says(INSTRUCTION)]}]
    text = rendered(
        tokenizer, folder, messages, _USUAL_PROMPT, config.audio_token_id, add_generation_prompt=True
    )
    return split_at_audio(text, tokenizer, config.audio_token_id, eos_ids)


FAMILY = Family(
    model_type="qwen2_audio",
    architecture="Qwen2AudioForConditionalGeneration",
    since="5.0",
    geometry=pooled_geometry,
    audio_half=_audio_half,
    prompt=_prompt,
    as_causal_lm=language_model,
    true_length=True,
    mmproj="qwen2a",
)
