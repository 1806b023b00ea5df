"""Text among the audio tokens: a model that is told the time as it hears (MOSS-Transcribe-Diarize)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.manifest import PromptSpec


def with_time_marks(
    audio_embeddings: Float32, prompt: PromptSpec, embed: Callable[[tuple[int, ...]], Float32]
) -> Float32:
    """(audio_tokens, hidden) with the rows of the prompt's time marks among them; itself, where there are none.

    `embed`: token ids → (n, hidden).
    """
    pieces, begun = [], 0
    for mark in prompt.marks_among(len(audio_embeddings)):
        pieces += [audio_embeddings[begun : mark.after], embed(mark.ids)]
        begun = mark.after
    return np.concatenate([*pieces, audio_embeddings[begun:]]) if pieces else audio_embeddings
