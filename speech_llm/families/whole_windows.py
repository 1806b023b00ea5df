"""What encoders share that hear windows of 30 s whole, silence and all, and stack frames for the projector.

Audio of its true length is another input to them: nothing masks the silence. A model that was healed on it (`trimmed`) pays
for what was said alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunella.device_runtime.bundle import HOP_LENGTH, AudioSpec, FeatureSpec
from prunella.speech_llm.families.family import WINDOW_SECONDS, AudioGeometry

_FRAMES_PER_ROW = 2  # the second convolution has stride 2


def strided_front(tower: Any, log_mel: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Whisper's two convolutions: (batch, bins, frames) → (batch, frames / 2, width); zeros behind `valid` (batch,) frames."""
    hidden = nn.functional.gelu(tower.conv1(log_mel))
    if valid is not None:
        # The second convolution must see a row's end as it would without the padding: zeros.
        inside = torch.arange(hidden.shape[2], device=hidden.device) < valid[:, None]
        hidden = hidden * inside[:, None, :]
    return nn.functional.gelu(tower.conv2(hidden)).transpose(1, 2)


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
