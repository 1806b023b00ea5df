"""Whisper's encoder over the audio's true length."""

from __future__ import annotations

import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from prunella.speech_llm.config import AudioEncoderConfig
from prunella.speech_llm.whisper_layers import attention_bias, run_layers, strided_front


class TrueLengthWhisperEncoder(WhisperEncoder):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Hugging Face's `WhisperEncoder` (same parameter names) whose forward takes any length up to 30 s.

    The stock forward insists on 3000 mel frames, so that a 2 s command costs as much as 30 s; the layers do not care.
    """

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__(
            WhisperConfig(
                d_model=config.d_model,
                encoder_layers=config.encoder_layers,
                encoder_attention_heads=config.encoder_attention_heads,
                encoder_ffn_dim=config.encoder_ffn_dim,
                num_mel_bins=config.num_mel_bins,
                max_source_positions=config.max_source_positions,
                attn_implementation="sdpa",  # type: ignore[call-arg]
                dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.0,
                encoder_layerdrop=0.0,
            )
        )

    def forward(self, log_mel: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Encode.

        Args:
            log_mel: (batch, num_mel_bins, mel_frames), at most 3000 frames, an even number.
            valid: (batch,) true number of log-mel frames of each row, when rows were padded to one length; even.

        Returns:
            (batch, mel_frames / 2, d_model)
        """
        hidden = strided_front(self, log_mel, valid)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        mask = attention_bias(hidden, None if valid is None else valid // 2)
        hidden = run_layers(self.layers, hidden, mask)
        normed: torch.Tensor = self.layer_norm(hidden)
        return normed
