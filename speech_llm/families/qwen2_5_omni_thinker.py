"""Qwen2.5-Omni's thinker, which hears and writes: Whisper's encoder over chunks of two seconds, a Qwen2 decoder.

Its rotary positions have three parts (time, height, width), which are one and the same for sound and text: a plain Qwen2. The
part that sees stays in the checkpoint as it is; the talker and the vocoder are no part of the thinker's class.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from prunella.device_runtime.bundle import HOP_LENGTH, AudioSpec, FeatureSpec
from prunella.speech_llm.families.chat_prompt import AUDIO, PLACEHOLDER, chat_prompt, says
from prunella.speech_llm.families.family import AudioGeometry, Family
from prunella.speech_llm.families.qwen2_audio import INSTRUCTION, pooled_rows
from prunella.speech_llm.families.qwen3_asr import attend
from prunella.speech_llm.families.renamed_decoder import around, renamed, shared_fields, update_fields
from prunella.speech_llm.whisper_layers import attention_bias

_FRAMES_PER_TOKEN = 4  # features': the second convolution has stride 2, the mean is of two
_USUAL_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"<|audio_bos|>{PLACEHOLDER}<|audio_eos|>{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
)


class ChunkedWhisperEncoder(nn.Module):
    """`Qwen2_5OmniAudioEncoder` without its projection, chunks being rows of a batch in place of packed sequences."""

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__()
        self.tower = copy.copy(tower)  # the same modules
        self.tower._modules = {  # noqa: SLF001 - the projection is the projector's
            name: module for name, module in tower.named_children() if name != "proj"
        }
        self.chunk = 2 * tower.config.n_window

    def forward(self, log_mel: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, bins, frames), frames a multiple of a chunk; `valid` (batch,) → (batch, frames / 4, d_model)."""
        tower: Any = self.tower
        batch, bins, frames = log_mel.shape
        chunks = frames // self.chunk
        heard = log_mel.reshape(batch, bins, chunks, self.chunk).transpose(1, 2)
        heard = heard.reshape(batch * chunks, bins, self.chunk)
        left = None
        if valid is not None:
            starts = torch.arange(chunks, device=log_mel.device) * self.chunk
            left = (valid[:, None] - starts).clamp(0, self.chunk).reshape(-1)
            inside = torch.arange(self.chunk, device=log_mel.device) < left[:, None]
            # Behind the audio each convolution sees zeros, and no silence.
            heard = heard * inside[:, None]
        hidden = nn.functional.gelu(tower.conv1(heard))
        if left is not None:
            hidden = hidden * inside[:, None]
        hidden = nn.functional.gelu(tower.conv2(hidden)).transpose(1, 2)
        hidden = hidden + tower.positional_embedding.positional_embedding[: hidden.shape[1]].to(hidden.dtype)
        mask = attention_bias(hidden, None if left is None else (left + 1) // 2)
        for layer in tower.layers:
            hidden = hidden + attend(layer.self_attn, layer.self_attn_layer_norm(hidden), mask)
            wide = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
            hidden = hidden + layer.fc2(wide)
        rows = hidden.reshape(batch, -1, hidden.shape[-1])
        rows = rows[:, : rows.shape[1] // 2 * 2]
        pooled = (rows[:, 0::2] + rows[:, 1::2]) / 2  # pairs go over the ends of odd chunks
        normed: torch.Tensor = tower.ln_post(pooled)
        return normed


class Projection(nn.Module):
    """The encoder's last matrix."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, n, d_model) → (batch, n, hidden)."""
        tokens: torch.Tensor = self.linear(frames)
        return tokens


def _geometry(config: Any, trimmed: bool) -> AudioGeometry:
    audio = config.audio_config
    token = _FRAMES_PER_TOKEN * HOP_LENGTH
    # Silence behind the audio, so that its last frame is not reflected at the end.
    features = FeatureSpec(
        num_mel_bins=audio.num_mel_bins,
        multiple=1,
        extra=token,
        frame_multiple=2 * audio.n_window,
        valid="ceil",
    )
    return AudioGeometry(
        audio=AudioSpec(features=features, samples_per_token=token),
        encoder_width=audio.d_model,
        frames_per_token=1,
        samples_per_frame=token,
        encoder_frames=pooled_rows,
    )


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    tower = stock.model.audio_tower
    return ChunkedWhisperEncoder(tower), Projection(tower.proj)


def _as_qwen2(stock: PreTrainedModel) -> PreTrainedModel:
    body: Any = stock.model.language_model
    rope = {name: value for name, value in body.config.rope_parameters.items() if name != "mrope_section"}
    tied = stock.lm_head.weight is body.get_input_embeddings().weight
    config = shared_fields(
        Qwen2Config, body.config, rope_parameters=rope | {"rope_type": "default"}, tie_word_embeddings=tied
    )
    decoder: PreTrainedModel = renamed(Qwen2ForCausalLM, config, body, stock.lm_head)
    return decoder


def _put_config(config: Any, decoder: Any) -> None:
    update_fields(config.text_config, decoder)


def _put_decoder(stock: Any, decoder: Any) -> None:
    with torch.device("meta"):
        body = type(stock.model.language_model)(stock.config.text_config)
    around(body, decoder.model, stock.config.text_config)
    stock.model.language_model, stock.lm_head = body, decoder.lm_head


FAMILY = Family(
    model_type="qwen2_5_omni_thinker",
    architecture="Qwen2_5OmniThinkerForConditionalGeneration",
    since="5.0",
    geometry=_geometry,
    audio_half=_audio_half,
    prompt=chat_prompt([AUDIO, says(INSTRUCTION)], _USUAL_PROMPT),
    as_causal_lm=_as_qwen2,
    true_length=True,
    put_config=_put_config,
    put_decoder=_put_decoder,
    stock_windows=False,
    mmproj="qwen2.5o",
)
