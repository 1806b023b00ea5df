"""Audio Flamingo 3: Qwen2-Audio's way to hear, two matrices, a Qwen2 decoder that quotes what was said."""

from __future__ import annotations

from prunella.speech_llm.families.chat_prompt import AUDIO, PLACEHOLDER, chat_prompt, says
from prunella.speech_llm.families.family import Family, language_model
from prunella.speech_llm.families.qwen2_audio import pooled_audio_half, pooled_geometry

_INSTRUCTION = "Transcribe the input speech."  # of `AudioFlamingo3Processor`
_USUAL_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"{PLACEHOLDER}{_INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
)

FAMILY = Family(
    model_type="audioflamingo3",
    architecture="AudioFlamingo3ForConditionalGeneration",
    since="5.0",
    geometry=pooled_geometry,
    audio_half=pooled_audio_half,
    prompt=chat_prompt([says(_INSTRUCTION), AUDIO], _USUAL_PROMPT, answer="quoted"),
    as_causal_lm=language_model,
    true_length=True,
    mmproj="musicflamingo",
)
