"""Voxtral: Whisper's encoder over whole 30 s, four frames to a token, a Llama decoder, Mistral's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.bundle import PromptSpec
from prunella.speech_llm.families.chat_prompt import language, split_at_audio
from prunella.speech_llm.families.family import AudioGeometry, Family, language_model
from prunella.speech_llm.families.whole_windows import StackingProjector, WindowEncoder, window_geometry
from prunella.speech_llm.whisper_layers import run_layers

_AUDIO_TOKEN = 24  # of `VoxtralProcessor`, for a configuration that names none
# That Mistral names for the model; the prompt itself would take any code.
_LANGUAGES = {
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "pt": "Portuguese",
    "hi": "Hindi",
    "de": "German",
    "nl": "Dutch",
    "it": "Italian",
}


class VoxtralEncoder(WindowEncoder):
    """With Whisper's learned positions."""

    def encode(self, tower: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """See `WindowEncoder.encode`."""
        hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
        normed: torch.Tensor = tower.layer_norm(run_layers(tower.layers, hidden, mask))
        return normed


def _geometry(config: Any, trimmed: bool) -> AudioGeometry:
    audio = config.audio_config
    return window_geometry(
        num_mel_bins=audio.num_mel_bins,
        width=audio.hidden_size,
        frames_per_token=audio.intermediate_size // audio.hidden_size,
        trimmed=trimmed,
        valid="all",  # silence too becomes tokens, 375 for each window
    )


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    model: Any = stock.model
    width = stock.config.audio_config.intermediate_size
    return VoxtralEncoder(model.audio_tower, trimmed), StackingProjector(model.multi_modal_projector, width)


def _prompt(
    config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, eos_ids: tuple[int, ...]
) -> PromptSpec:
    # `encode_transcription` of mistral-common, which is no chat: a template of the folder has no say in it.
    audio = _AUDIO_TOKEN if config.audio_token_id is None else config.audio_token_id
    placeholder = tokenizer.convert_ids_to_tokens(audio)
    languages = tuple(language(tokenizer, code, name, f"lang:{code}") for code, name in _LANGUAGES.items())
    text = f"{tokenizer.bos_token or ''}[INST][BEGIN_AUDIO]{placeholder}[/INST]"
    return split_at_audio(text, tokenizer, audio, eos_ids, behind="[TRANSCRIBE]", languages=languages)


FAMILY = Family(
    model_type="voxtral",
    architecture="VoxtralForConditionalGeneration",
    since="5.0",
    geometry=_geometry,
    audio_half=_audio_half,
    prompt=_prompt,
    as_causal_lm=language_model,
    true_length=False,
    mmproj="voxtral",
)
