"""GLM-ASR: a Whisper encoder with rotary positions over whole 30 s, four frames to a token, a Llama decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.speech_llm.families.chat_prompt import AUDIO, PLACEHOLDER, chat_prompt, says
from prunella.speech_llm.families.family import AudioGeometry, Family, language_model
from prunella.speech_llm.families.whole_windows import StackingProjector, WindowEncoder, window_geometry
from prunella.speech_llm.whisper_layers import run_layers

_FRAMES_PER_TOKEN = 4  # `merge_factor`, which the stock class counts tokens by
_INSTRUCTION = "Please transcribe this audio into text"  # of `GlmAsrProcessor`
_USUAL_PROMPT = (
    f"<|user|>\n<|begin_of_audio|>{PLACEHOLDER}<|end_of_audio|><|user|>\n{_INSTRUCTION}<|assistant|>\n"
)


class RotaryEncoder(WindowEncoder):
    """With rotary positions."""

    def encode(self, tower: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """See `WindowEncoder.encode`."""
        places = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = tower.rotary_emb(hidden, position_ids=places)
        hidden = run_layers(tower.layers, hidden, mask, position_embeddings=rotary)
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


FAMILY = Family(
    model_type="glmasr",
    architecture="GlmAsrForConditionalGeneration",
    since="5.0",
    geometry=_geometry,
    audio_half=_audio_half,
    prompt=chat_prompt([AUDIO, says(_INSTRUCTION)], _USUAL_PROMPT),
    as_causal_lm=language_model,
    true_length=False,
    mmproj="glma",
)
