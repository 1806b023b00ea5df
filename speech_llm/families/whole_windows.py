"""What encoders share that hear windows of 30 s whole, silence and all, and stack frames for the projector.

Audio of its true length is another input to them: nothing masks the silence. A model that was healed on it (`trimmed`) pays
for what was said alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.device_runtime.bundle import HOP_LENGTH, AudioSpec, FeatureSpec
from prunella.speech_llm.families.family import WINDOW_SECONDS, AudioGeometry
from prunella.speech_llm.whisper_layers import attention_bias, strided_front

_FRAMES_PER_ROW = 2  # the second convolution has stride 2


class WindowEncoder(nn.Module, ABC):
    """The stock encoder of a family, which hears 30 s and masks nothing; of a model healed on trimmed audio, the true length."""

    def __init__(self, tower: PreTrainedModel, trimmed: bool) -> None:
        super().__init__()
        self.tower = tower
        self.trimmed = trimmed

    def forward(self, log_mel: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, bins, frames), frames 3000 unless trimmed; `valid` (batch,) → (batch, frames / 2, width)."""
        heard = valid if self.trimmed else None
        hidden = strided_front(self.tower, log_mel, heard)
        mask = attention_bias(hidden, None if heard is None else (heard + 1) // _FRAMES_PER_ROW)
        return self.encode(self.tower, hidden, mask)

    @abstractmethod
    def encode(self, tower: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(batch, rows, width) behind the convolutions → the same shape, behind the last norm; each family's own."""


class StackingProjector(nn.Module):
    """A projector of vectors in which `width` numbers of successive encoder frames stand one behind the other."""

    def __init__(self, projector: nn.Module, width: int) -> None:
        super().__init__()
        self.projector = projector
        self.width = width

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, n, d) → (batch, n * d / width, hidden); frames at the end that fill no vector are left out."""
        batch, count, d = frames.shape
        stacked = self.width // d
        whole = frames[:, : count // stacked * stacked]
        tokens: torch.Tensor = self.projector(whole.reshape(batch, -1, self.width))
        return tokens


def window_geometry(
    *, num_mel_bins: int, width: int, frames_per_token: int, trimmed: bool, valid: str
) -> AudioGeometry:
    """Of whole windows, or of whole tokens where the model was healed on trimmed audio.

    Args:
        num_mel_bins: of the features.
        width: of an encoder frame.
        frames_per_token: encoder frames in a token.
        trimmed: see above.
        valid: which frames of whole windows become tokens, see `FeatureSpec.valid`.
    """
    token = frames_per_token * _FRAMES_PER_ROW * HOP_LENGTH
    audio = AudioSpec()
    features = FeatureSpec(
        num_mel_bins=num_mel_bins,
        multiple=token if trimmed else WINDOW_SECONDS * audio.sampling_rate,
        extra=0,
        valid="all" if trimmed else valid,
    )
    return AudioGeometry(
        audio=AudioSpec(features=features, samples_per_token=token),
        encoder_width=width,
        frames_per_token=frames_per_token,
        samples_per_frame=_FRAMES_PER_ROW * HOP_LENGTH,
        encoder_frames=lambda frames: (frames + 1) // _FRAMES_PER_ROW,
    )
