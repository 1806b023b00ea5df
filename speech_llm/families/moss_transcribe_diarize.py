"""MOSS-Transcribe-Diarize: Whisper's encoder over whole 30 s, four frames to a token, seconds among them, a Qwen3 decoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import PromptSpec, TimeMark
from prunella.speech_llm.families.chat_prompt import AUDIO, PLACEHOLDER, chat_prompt, token_ids
from prunella.speech_llm.families.family import WINDOW_SECONDS, AudioGeometry, Family, language_model
from prunella.speech_llm.families.voxtral import VoxtralEncoder
from prunella.speech_llm.families.whole_windows import StackingProjector, window_geometry

# The folder's template brings the authors' own; this is for a folder without one.
_USUAL_PROMPT = (
    f"<|im_start|>user\n<|audio_start|>{PLACEHOLDER}<|audio_end|>\n"
    "Transcribe the audio. Begin every segment with its start time and its speaker ([S01], [S02], ...), and end it with its "
    "end time.<|im_end|>\n<|im_start|>assistant\n"
)
_ask = chat_prompt([AUDIO], _USUAL_PROMPT, answer="diarized")


def _geometry(config: Any, trimmed: bool) -> AudioGeometry:
    audio, merged = config.audio_config, config.audio_merge_size
    geometry = window_geometry(
        num_mel_bins=audio.num_mel_bins,
        width=audio.hidden_size,
        frames_per_token=merged,
        trimmed=trimmed,
        valid="ceil",
    )
    # A token that has begun is one: its other frames are of the silence in the window.
    return replace(
        geometry, encoder_frames=lambda frames: ((frames + 1) // 2 + merged - 1) // merged * merged
    )


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    model: Any = stock.model
    width = stock.config.adaptor_input_dim
    return VoxtralEncoder(model.audio_tower, trimmed), StackingProjector(model.multi_modal_projector, width)


def _prompt(
    config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, eos_ids: tuple[int, ...]
) -> PromptSpec:
    prompt = _ask(config, tokenizer, folder, eos_ids)
    every, per_second = _marks(folder)
    tokens = int(per_second * every)
    if tokens <= 0:
        return prompt
    # `MossTranscribeDiarizeProcessor.replace_audio_token`: plain numbers of seconds.
    marks = tuple(
        TimeMark(second // every * tokens, str(second), token_ids(tokenizer, str(second)))
        for second in range(every, WINDOW_SECONDS + 1, every)
    )
    return replace(prompt, time_marks=marks)


def _marks(folder: Path) -> tuple[int, float]:
    """Seconds between two marks and audio tokens in a second, as the processor was saved."""
    path = folder / "processor_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return int(said.get("time_marker_every_seconds", 2)), float(said.get("audio_tokens_per_second", 12.5))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be used ({error}): download it again") from error


FAMILY = Family(
    model_type="moss_transcribe_diarize",
    architecture="MossTranscribeDiarizeForConditionalGeneration",
    since="5.20",
    geometry=_geometry,
    audio_half=_audio_half,
    prompt=_prompt,
    as_causal_lm=language_model,
    true_length=False,
)
