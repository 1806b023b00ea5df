"""The families of speech LLMs that transformers has classes for: one file and one line each.

Ultravox has no such class and is read by `hub.py`; prunella's own folder holds it and the reference.
"""

from __future__ import annotations

from prunella.speech_llm.families import audioflamingo3, glmasr, qwen2_audio, qwen3_asr, voxtral
from prunella.speech_llm.families.family import AudioGeometry as AudioGeometry
from prunella.speech_llm.families.family import Family as Family

FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (
        qwen3_asr.FAMILY,
        qwen2_audio.FAMILY,
        voxtral.FAMILY,
        glmasr.FAMILY,
        audioflamingo3.FAMILY,
    )
}
