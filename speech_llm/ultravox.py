"""The Ultravox projector: stacked encoder frames to the decoder's embedding space (fixie-ai/ultravox, v0.5 layout)."""

from __future__ import annotations

import torch
from torch import nn

from prunella.speech_llm.config import SpeechLLMConfig


class UltravoxProjector(nn.Module):
    """Stack frames → RMSNorm → Linear → SwiGLU → RMSNorm → Linear, no biases (`projector_ln_mid` layout)."""

    def __init__(self, config: SpeechLLMConfig) -> None:
        super().__init__()
        self.stack_factor = config.stack_factor
        stacked = config.audio_encoder.d_model * config.stack_factor
        hidden, eps = config.projector_hidden_size, config.projector_norm_eps
        self.ln_pre = nn.RMSNorm(stacked, eps=eps)
        self.linear_1 = nn.Linear(stacked, hidden, bias=False)
        self.ln_mid = nn.RMSNorm(hidden // 2, eps=eps)
        self.linear_2 = nn.Linear(hidden // 2, config.text_hidden_size, bias=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, encoder_frames, d_model), frames a multiple of the stack factor → (batch, audio_tokens, hidden)."""
        batch, length, width = frames.shape
        stacked = frames.reshape(batch, length // self.stack_factor, width * self.stack_factor)
        value, gate = self.linear_1(self.ln_pre(stacked)).chunk(2, dim=-1)
        # Ultravox gates with the second half, llama.cpp's "swapped" SwiGLU.
        tokens: torch.Tensor = self.linear_2(self.ln_mid(value * nn.functional.silu(gate)))
        return tokens
