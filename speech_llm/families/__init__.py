"""The families of speech LLMs: one file and one line each."""

from __future__ import annotations

import json
from pathlib import Path

from prunella.speech_llm.families import (
    audioflamingo3,
    fun_asr_nano,
    glmasr,
    granite_speech,
    granite_speech_plus,
    moss_transcribe_diarize,
    musicflamingo,
    phi4_multimodal,
    qwen2_5_omni_thinker,
    qwen2_audio,
    qwen3_asr,
    ultravox,
    voxtral,
)
from prunella.speech_llm.families.family import AudioGeometry as AudioGeometry
from prunella.speech_llm.families.family import Family as Family

# By the class that `config.json` names.
FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (
        qwen3_asr.FAMILY,
        qwen2_audio.FAMILY,
        voxtral.FAMILY,
        glmasr.FAMILY,
        audioflamingo3.FAMILY,
        granite_speech.FAMILY,
        granite_speech_plus.FAMILY,
        moss_transcribe_diarize.FAMILY,
        qwen2_5_omni_thinker.FAMILY,
        fun_asr_nano.FAMILY,
        phi4_multimodal.FAMILY,
        musicflamingo.FAMILY,
        ultravox.FAMILY,
    )
}


def find_family(folder: Path) -> Family | None:
    """The family of the model in `folder`, by the class that its `config.json` names; None: none of them.

    Where transformers has no class, by `model_type`, which is all that such files agree on.
    """
    try:
        body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = body.get("architectures") or ()
        if "thinker_config" in body:  # the class's name, in another layout
            return None
        own = [
            one
            for one in FAMILIES.values()
            if one.layout == "own" and one.model_type == body.get("model_type")
        ]
        return own[0] if own else next((FAMILIES[name] for name in names if name in FAMILIES), None)
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def family_named(model_type: str) -> Family | None:
    """The family of a `model_type`."""
    return next((family for family in FAMILIES.values() if family.model_type == model_type), None)
