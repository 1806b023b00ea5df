"""Phi-4-multimodal: a conformer over Kaldi's filter banks at full scale, two matrices, a decoder that is a Phi-3.

The decoder's layers, table and head lie beside what sees and hears, and the configuration is the decoder's own. What sees stays
in the checkpoint as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedModel

from prunella.device_runtime.bundle import HOP_LENGTH, AudioSpec, FeatureSpec
from prunella.device_runtime.manifest import WINDOW_LENGTH
from prunella.speech_llm.families.chat_prompt import AUDIO, PLACEHOLDER, chat_prompt, says
from prunella.speech_llm.families.family import AudioGeometry, Family
from prunella.speech_llm.families.renamed_decoder import around, renamed, shared_fields, update_fields

_INSTRUCTION = "Transcribe the audio clip into text."
_USUAL_PROMPT = f"<|user|>{PLACEHOLDER}{_INSTRUCTION}<|end|><|assistant|>"
_FRAMES_PER_TOKEN = 8  # `audio_compression_rate` of its feature extractor
_DECODER_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")


class ConformerEncoder(nn.Module):
    """`Phi4MultimodalAudioModel` for pieces of at most 40 s, rows of a batch being padded."""

    def __init__(self, tower: PreTrainedModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, features: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, bins, frames); `valid` (batch,) → (batch, frames / time_reduction rounded up, hidden)."""
        tower: Any = self.tower
        heard = tower.encoder_embedding(features.transpose(1, 2))[:, None]
        rows = valid
        for layer in tower.embed.conv:
            if rows is not None and getattr(layer, "stride", (1,))[0] == 2:
                # Behind the audio a convolution sees zeros.
                inside = torch.arange(heard.shape[2], device=heard.device) < rows[:, None]
                heard = heard * inside[:, None, :, None]
                rows = (rows + 1) // 2
            heard = layer(heard)
        hidden = tower.embed.out(heard.transpose(1, 2).flatten(2))
        length = hidden.shape[1]
        mask = tower.relative_attention_bias_layer(hidden) + self._seen(hidden)
        if rows is not None:
            behind = torch.arange(length, device=hidden.device) >= rows[:, None]
            mask = mask.masked_fill(behind[:, None, None, :], torch.finfo(hidden.dtype).min)
        for layer in tower.encoders:
            hidden = layer(hidden, mask)
        out: torch.Tensor = hidden
        return out

    def _seen(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, rows): 1 at what a row of a streaming model sees, which the stock class adds to the logits; nothing is hidden."""
        config: Any = self.tower.config
        place = torch.arange(hidden.shape[1], device=hidden.device)
        if config.chunk_size <= 0:
            return torch.ones(1, 1, device=hidden.device, dtype=hidden.dtype)
        chunk = place // config.chunk_size
        behind = chunk[:, None] - chunk[None, :]
        seen: torch.Tensor = ((behind >= 0) & (behind <= config.left_chunk)).to(hidden.dtype)
        return seen


class SpeechProjector(nn.Module):
    """Of speech alone: for speech beside a picture the model has two other matrices."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.up, self.down = embedding.up_proj_for_speech, embedding.down_proj_for_speech

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, n, width) → (batch, n, hidden)."""
        tokens: torch.Tensor = self.down(nn.functional.gelu(self.up(frames)))
        return tokens


def _geometry(config: Any, trimmed: bool) -> AudioGeometry:
    audio = config.audio_config
    reduced = audio.time_reduction
    # `Phi4MultimodalFeatureExtractor`: samples as 16-bit numbers, powers below 1 are 1.
    features = FeatureSpec(
        kind="fbank",
        num_mel_bins=audio.input_size,
        min_samples=WINDOW_LENGTH,
        multiple=1,
        extra=0,
        low_hertz=0.0,
        high_hertz=7_690.0,
        gain=32_768.0,
        floor=1.0,
        remove_offset=False,
    )
    return AudioGeometry(
        audio=AudioSpec(features=features, samples_per_token=reduced * HOP_LENGTH),
        encoder_width=audio.hidden_size,
        frames_per_token=1,
        samples_per_frame=reduced * HOP_LENGTH,
        encoder_frames=lambda frames: (frames + reduced - 1) // reduced,
    )


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    embedding: Any = stock.model.embed_tokens_extend.audio_embed
    return ConformerEncoder(embedding.encoder), SpeechProjector(embedding)


def _as_phi3(stock: PreTrainedModel) -> PreTrainedModel:
    body: Any = stock.model
    tied = stock.lm_head.weight is body.embed_tokens.weight
    config = shared_fields(Phi3Config, stock.config, tie_word_embeddings=tied)
    decoder: PreTrainedModel = renamed(Phi3ForCausalLM, config, body, stock.lm_head)
    return decoder


def _put_decoder(stock: Any, decoder: Any) -> None:
    with torch.device("meta"):
        made = type(stock)(stock.config).model
    around(made, decoder.model, stock.config)
    for name in _DECODER_PARTS:
        setattr(stock.model, name, getattr(made, name))
    stock.lm_head = decoder.lm_head
    stock.model.embed_tokens_extend = _with_config(stock.model.embed_tokens_extend, stock.config)


def _with_config(extend: Any, config: Any) -> Any:
    """What sees and hears around the same modules, with this configuration's token ids."""
    other = copy.copy(extend)
    other._modules = {name: copy.copy(part) for name, part in extend.named_children()}  # noqa: SLF001 - shallow copies
    for part in (other, *other.children()):
        part.config = config
    other.image_token_id = config.vision_config.image_token_id
    other.audio_token_id = config.audio_config.audio_token_id
    return other


def _stock_inputs(features: torch.Tensor, valid: int) -> dict[str, Any]:
    # Counted as the processor does, not as here: the class takes what it is told.
    sizes = torch.tensor([-(-valid // _FRAMES_PER_TOKEN)])
    return {"audio_input_features": features.T[None, :valid], "audio_embed_sizes": sizes}


FAMILY = Family(
    model_type="phi4_multimodal",
    architecture="Phi4MultimodalForCausalLM",
    since="5.0",
    geometry=_geometry,
    audio_half=_audio_half,
    prompt=chat_prompt([AUDIO, says(_INSTRUCTION)], _USUAL_PROMPT),
    as_causal_lm=_as_phi3,
    true_length=True,
    put_config=update_fields,
    put_decoder=_put_decoder,
    stock_windows=False,
    stock_inputs=_stock_inputs,
    speech_adapter="speech-lora",
)
