"""Ultravox: Whisper's encoder over the audio's true length, stacked frames, SwiGLU, any decoder; the embedded models are of it.

transformers has no class for it: `hub.py` reads it from the Hub, and prunella's own folder keeps it. What the functions below
are given in place of the stock model and its configuration is that folder's `SpeechLLMConfig`.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import PromptSpec
from prunella.speech_llm.config import SpeechLLMConfig
from prunella.speech_llm.families.family import AudioGeometry, Family
from prunella.speech_llm.ultravox import UltravoxProjector
from prunella.speech_llm.whisper_encoder import TrueLengthWhisperEncoder


def _geometry(config: SpeechLLMConfig, trimmed: bool) -> AudioGeometry:
    return AudioGeometry(
        audio=config.audio,
        encoder_width=config.encoder_width,
        frames_per_token=config.frames_per_token,
        samples_per_frame=config.samples_per_frame,
        encoder_frames=config.encoder_frames,
    )


def _audio_half(config: SpeechLLMConfig, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    return TrueLengthWhisperEncoder(config.audio_encoder), UltravoxProjector(config)


def tokenize_prompt(config: SpeechLLMConfig, tokenizer: PreTrainedTokenizerBase) -> PromptSpec:
    """Token ids of the fixed prompt.

    Raises:
        CheckpointError: the end token is not one token of this tokenizer.
    """
    prompt = config.prompt
    eos = tokenizer.convert_tokens_to_ids(prompt.eos_token)
    if not isinstance(eos, int) or tokenizer.convert_ids_to_tokens(eos) != prompt.eos_token:
        raise CheckpointError(
            f"the tokenizer has no token {prompt.eos_token!r}: set prompt.eos_token in config.json"
        )
    return PromptSpec.around_audio(
        prompt.before_audio,
        prompt.after_audio,
        tuple(tokenizer(prompt.before_audio, add_special_tokens=False)["input_ids"]),
        tuple(tokenizer(prompt.after_audio, add_special_tokens=False)["input_ids"]),
        (eos,),
        config.text_style,
    )


def _prompt(
    config: SpeechLLMConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, eos_ids: tuple[int, ...]
) -> PromptSpec:
    return tokenize_prompt(config, tokenizer)


def _decoder(decoder: PreTrainedModel) -> PreTrainedModel:
    return decoder  # it is one already


FAMILY = Family(
    model_type="ultravox",
    architecture="UltravoxModel",
    since="",
    geometry=_geometry,
    audio_half=_audio_half,
    prompt=_prompt,
    as_causal_lm=_decoder,
    true_length=True,
    mmproj="ultravox",
    layout="own",
)
