"""Audio Flamingo 3: Qwen2-Audio's way to hear, two matrices, a Qwen2 decoder that quotes what was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.bundle import PromptSpec
from prunella.speech_llm.families.chat_prompt import AUDIO, rendered, says, split_at_audio
from prunella.speech_llm.families.family import Family, language_model
from prunella.speech_llm.families.qwen2_audio import PooledWhisperEncoder, pooled_geometry

_INSTRUCTION = "Transcribe the input speech."  # of `AudioFlamingo3Processor`
_USUAL_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"<sound>{_INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
)


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    return PooledWhisperEncoder(stock.model.audio_tower), stock.model.multi_modal_projector


def _prompt(
    config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, eos_ids: tuple[int, ...]
) -> PromptSpec:
    messages = [{"role": "user", "content": [says(_INSTRUCTION), AUDIO]}]
    text = rendered(
        tokenizer, folder, messages, _USUAL_PROMPT, config.audio_token_id, add_generation_prompt=True
    )
    return split_at_audio(text, tokenizer, config.audio_token_id, eos_ids, answer="quoted")


FAMILY = Family(
    model_type="audioflamingo3",
    architecture="AudioFlamingo3ForConditionalGeneration",
    since="5.0",
    geometry=pooled_geometry,
    audio_half=_audio_half,
    prompt=_prompt,
    as_causal_lm=language_model,
    true_length=True,
    mmproj="musicflamingo",
)
