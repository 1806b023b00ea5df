"""Granite Speech Plus: Granite Speech whose Q-Former hears inner layers of the Conformer beside the last."""

from __future__ import annotations

from dataclasses import replace

from prunella.speech_llm.families import granite_speech

FAMILY = replace(
    granite_speech.FAMILY,
    model_type="granite_speech_plus",
    architecture="GraniteSpeechPlusForConditionalGeneration",
)
