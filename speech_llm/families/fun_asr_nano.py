"""Fun-ASR-Nano: SenseVoice's encoder with memory (SAN-M) over Kaldi's filter banks, an adaptor that attends, a Qwen3 decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.device_runtime.bundle import HOP_LENGTH, AudioSpec, FeatureSpec
from prunella.device_runtime.manifest import WINDOW_LENGTH
from prunella.speech_llm.families.chat_prompt import AUDIO, PLACEHOLDER, chat_prompt
from prunella.speech_llm.families.family import AudioGeometry, Family, language_model
from prunella.speech_llm.whisper_layers import attention_bias

_STEP = 6  # frames between two that are stacked, of `FunAsrNanoFeatureExtractor`
# "Transcription of speech". A language would stand before the audio too, in the prompt that is prefilled once.
_USUAL_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"语音转写：{PLACEHOLDER}<|im_end|>\n<|im_start|>assistant\n"
)


class MemoryEncoder(nn.Module):
    """`FunAsrNanoEncoder`, its masks made of lengths."""

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, features: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, width, frames); `valid` (batch,) → (batch, frames, hidden)."""
        tower: Any = self.tower
        hidden: torch.Tensor = features.transpose(1, 2)
        mask = attention_bias(hidden, valid)
        # What remembers is a convolution, which must see zeros behind the audio.
        heard = torch.ones_like(hidden[..., 0])
        if valid is not None:
            heard = (torch.arange(hidden.shape[1], device=hidden.device) < valid[:, None]).to(hidden.dtype)
        hidden = hidden * tower.scaling + tower.position_embeddings(hidden)
        for layer in tower.layers:
            hidden = layer(hidden, mask, heard)
        out: torch.Tensor = hidden
        return out


class AttendingProjector(nn.Module):
    """`FunAsrNanoMultiModalProjector`: two matrices, and layers in which tokens attend to one another."""

    takes_frames = True

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector
        config: Any = projector.config
        if config._attn_implementation is None:  # noqa: SLF001 - its class leaves it open, and transformers warns of that
            config._attn_implementation = "sdpa"  # noqa: SLF001

    def forward(self, encoded: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, n, width), `frames` (batch,) of them audio's → (batch, n, hidden)."""
        projector: Any = self.projector
        hidden = projector.linear_2(projector.act(projector.linear_1(encoded)))
        mask = attention_bias(hidden, frames)
        for layer in projector.layers:
            hidden = layer(hidden, mask)
        tokens: torch.Tensor = hidden
        return tokens


def _geometry(config: Any, trimmed: bool) -> AudioGeometry:
    audio = config.audio_config
    features = FeatureSpec(
        kind="fbank",
        num_mel_bins=audio.num_mel_bins,
        min_samples=WINDOW_LENGTH,
        multiple=1,
        extra=0,
        stack=audio.num_stacked_frames,
        stack_step=_STEP,
    )
    return AudioGeometry(
        audio=AudioSpec(features=features, samples_per_token=_STEP * HOP_LENGTH),
        encoder_width=audio.hidden_size,
        frames_per_token=1,
        samples_per_frame=_STEP * HOP_LENGTH,
        encoder_frames=lambda frames: frames,
    )


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    model: Any = stock.model
    return MemoryEncoder(model.audio_tower), AttendingProjector(model.multi_modal_projector)


def _stock_inputs(features: torch.Tensor, valid: int) -> dict[str, Any]:
    heard = features.T[None, :valid]
    return {"input_features": heard, "input_features_mask": torch.ones(heard.shape[:2], dtype=torch.long)}


FAMILY = Family(
    model_type="fun_asr_nano",
    architecture="FunAsrNanoForConditionalGeneration",
    since="5.17",
    geometry=_geometry,
    audio_half=_audio_half,
    prompt=chat_prompt([AUDIO], _USUAL_PROMPT),
    as_causal_lm=language_model,
    true_length=True,
    stock_windows=False,
    stock_inputs=_stock_inputs,
)
