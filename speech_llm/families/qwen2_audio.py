"""Qwen2-Audio: Whisper's encoder with pairs of frames averaged, one matrix, a Qwen2 decoder (or any other)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.device_runtime.bundle import HOP_LENGTH, AudioSpec, FeatureSpec
from prunella.speech_llm.families.chat_prompt import AUDIO, PLACEHOLDER, chat_prompt, says
from prunella.speech_llm.families.family import AudioGeometry, Family, language_model
from prunella.speech_llm.whisper_layers import attention_bias, run_layers, strided_front

_FRAMES_PER_TOKEN = 4  # features': the second convolution has stride 2, the mean is of two
INSTRUCTION = "Transcribe the speech."
_USUAL_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"Audio 1: <|audio_bos|>{PLACEHOLDER}<|audio_eos|>\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
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
        hidden = strided_front(tower, log_mel)
        hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
        mask = attention_bias(hidden, None if valid is None else (valid + 1) // 2)
        hidden = run_layers(tower.layers, hidden, mask)
        pooled = tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2)
        normed: torch.Tensor = tower.layer_norm(pooled)
        return normed


def pooled_rows(valid: Any) -> Any:
    """Encoder frames of so many feature frames: `Qwen2AudioEncoder._get_feat_extract_output_lengths`."""
    return (valid + 1) // 2 // 2


def pooled_geometry(config: Any, trimmed: bool) -> AudioGeometry:
    """Of a Whisper encoder that is masked behind the audio and averages pairs of frames."""
    audio = config.audio_config
    token = _FRAMES_PER_TOKEN * HOP_LENGTH
    # Three frames of silence at least are behind the audio: the last row hears two of them.
    features = FeatureSpec(num_mel_bins=audio.num_mel_bins, multiple=token, extra=token, valid="ceil")
    return AudioGeometry(
        audio=AudioSpec(features=features, samples_per_token=token),
        encoder_width=audio.d_model,
        frames_per_token=1,
        samples_per_frame=token,
        encoder_frames=pooled_rows,
    )


def pooled_audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    """`Family.audio_half` of such an encoder."""
    return PooledWhisperEncoder(stock.model.audio_tower), stock.model.multi_modal_projector


FAMILY = Family(
    model_type="qwen2_audio",
    architecture="Qwen2AudioForConditionalGeneration",
    since="5.0",
    geometry=pooled_geometry,
    audio_half=pooled_audio_half,
    prompt=chat_prompt([AUDIO, says(INSTRUCTION)], _USUAL_PROMPT),
    as_causal_lm=language_model,
    true_length=True,
    mmproj="qwen2a",
)
