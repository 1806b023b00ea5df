"""What the audio encoders of Whisper's kind share: two convolutions, a mask behind the audio, a stack of layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def strided_front(tower: Any, log_mel: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Whisper's two convolutions: (batch, bins, frames) → (batch, frames / 2, width); zeros behind `valid` (batch,) frames."""
    hidden = nn.functional.gelu(tower.conv1(log_mel))
    if valid is not None:
        # The second convolution must see a row's end as it would without the padding: zeros.
        inside = torch.arange(hidden.shape[2], device=hidden.device) < valid[:, None]
        hidden = hidden * inside[:, None, :]
    return nn.functional.gelu(tower.conv2(hidden)).transpose(1, 2)


def attention_bias(hidden: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor | None:
    """For `hidden` (batch, length, width): (batch, 1, 1, length), 0 at the first `rows` (batch,) keys, the least number of its
    dtype behind them; None where all are the audio's."""
    if rows is None:
        return None
    inside = torch.arange(hidden.shape[1], device=hidden.device) < rows[:, None]
    bias = torch.zeros(inside.shape, dtype=hidden.dtype, device=hidden.device)
    return bias.masked_fill(~inside, torch.finfo(hidden.dtype).min)[:, None, None, :]


def run_layers(
    layers: Iterable[nn.Module], hidden: torch.Tensor, mask: torch.Tensor | None, **inputs: torch.Tensor
) -> torch.Tensor:
    """(batch, length, width) through transformers' layers, some of which give a tuple."""
    for layer in layers:
        output = layer(hidden, attention_mask=mask, **inputs)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden
