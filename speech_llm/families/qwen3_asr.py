"""Qwen3-ASR: convolutions over chunks of a second, attention in windows of eight, a plain Qwen3 decoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.bundle import HOP_LENGTH, AudioSpec, FeatureSpec, PromptSpec
from prunella.speech_llm.families.chat_prompt import (
    AUDIO,
    VOCABULARY,
    language,
    rendered,
    says,
    split_at_audio,
    vocabulary_place,
)
from prunella.speech_llm.families.family import AudioGeometry, Family, language_model

_SHORTEST = 8_000  # samples, of `Qwen3ASRFeatureExtractor`
_USUAL_PROMPT = (
    "<|im_start|>system\n{vocabulary}<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
    "<|im_start|>assistant\n"
)


def halved_three_times(frames: Any) -> Any:
    """Rows that three convolutions of stride 2 make of so many frames."""
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames


def chunked_rows(valid: Any, chunk: int) -> Any:
    """Encoder frames of so many feature frames, in chunks of so many."""
    return valid // chunk * halved_three_times(chunk) + halved_three_times(valid % chunk)


class ChunkedEncoder(nn.Module):
    """`Qwen3ASREncoder` with one mask for its windows in place of packed sequences, which cannot be exported."""

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__()
        self.tower = tower
        self.chunk = 2 * tower.config.n_window
        self.rows_per_chunk = int(halved_three_times(self.chunk))
        self.rows_per_window = self.rows_per_chunk * (tower.config.n_window_infer // self.chunk)

    def forward(self, log_mel: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, bins, frames), frames a multiple of a chunk; `valid` (batch,) → (batch, rows, d_model)."""
        tower: Any = self.tower
        batch, bins, frames = log_mel.shape
        chunks = frames // self.chunk
        heard = log_mel.reshape(batch, bins, chunks, self.chunk).transpose(1, 2)
        heard = heard.reshape(batch * chunks, 1, bins, self.chunk)
        for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
            heard = nn.functional.gelu(convolution(heard))
        rows = self.rows_per_chunk
        hidden = tower.conv_out(heard.permute(0, 3, 1, 2).reshape(batch * chunks, rows, -1))
        hidden = hidden + tower.positional_embedding.positional_embedding[:rows].to(hidden.dtype)
        hidden = hidden.reshape(batch, chunks * rows, -1)
        mask = self._mask(hidden, valid)
        for layer in tower.layers:
            hidden = hidden + attend(layer.self_attn, layer.self_attn_layer_norm(hidden), mask)
            wide = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
            hidden = hidden + layer.fc2(wide)
        normed: torch.Tensor = tower.ln_post(hidden)
        return normed

    def _mask(self, hidden: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(batch, 1, rows, rows): a row sees the valid rows of its own window."""
        place = torch.arange(hidden.shape[1], device=hidden.device)
        window = place // self.rows_per_window
        seen = (window[:, None] == window[None, :])[None]
        if valid is not None:
            seen = seen & (place < chunked_rows(valid, self.chunk)[:, None])[:, None, :]
        bias = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device)
        return bias.masked_fill(~seen, torch.finfo(hidden.dtype).min)[:, None]


def attend(attention: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention whose stock forward takes packed sequences: (batch, length, width), mask (batch, 1, any, length) → the same shape."""
    batch, length, width = hidden.shape
    query, key, value = (
        projection(hidden).reshape(batch, length, attention.num_heads, -1).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=attention.scaling
    )
    out: torch.Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
    return out


def _geometry(config: Any, trimmed: bool) -> AudioGeometry:
    audio = config.audio_config
    chunk = 2 * audio.n_window
    rows = int(halved_three_times(chunk))
    features = FeatureSpec(
        num_mel_bins=audio.num_mel_bins,
        min_samples=_SHORTEST,
        multiple=1,
        extra=0,
        frame_multiple=chunk,
        valid="floor",
    )

    return AudioGeometry(
        audio=AudioSpec(features=features, samples_per_token=chunk * HOP_LENGTH // rows),
        encoder_width=audio.d_model,
        frames_per_token=1,
        samples_per_frame=chunk * HOP_LENGTH / rows,
        encoder_frames=partial(chunked_rows, chunk=chunk),
    )


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    return ChunkedEncoder(stock.model.audio_tower), stock.model.multi_modal_projector


def _prompt(
    config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, eos_ids: tuple[int, ...]
) -> PromptSpec:
    from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

    # As `Qwen3ASRProcessor.apply_transcription_request`: the language begins the answer.
    messages = [{"role": "user", "content": [AUDIO]}]
    told = [{"role": "system", "content": [says(VOCABULARY)]}, *messages]
    text, marked = (
        rendered(
            tokenizer,
            folder,
            asked,
            _USUAL_PROMPT.format(vocabulary=words),
            config.audio_token_id,
            add_generation_prompt=True,
        )
        for asked, words in ((messages, ""), (told, VOCABULARY))
    )
    languages = tuple(
        language(tokenizer, code, name, f"language {name}<asr_text>")
        for code, name in LANGUAGE_CODE_TO_NAME.items()
    )
    return split_at_audio(
        text,
        tokenizer,
        config.audio_token_id,
        eos_ids,
        vocabulary_at=vocabulary_place(text, marked),
        answer="language-tag",
        languages=languages,
    )


FAMILY = Family(
    model_type="qwen3_asr",
    architecture="Qwen3ASRForConditionalGeneration",
    since="5.13",
    geometry=_geometry,
    audio_half=_audio_half,
    prompt=_prompt,
    as_causal_lm=language_model,
    true_length=True,
    stock_windows=False,
    mmproj="qwen3a",
)
