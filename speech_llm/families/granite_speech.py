"""Granite Speech: pairs of HTK frames, a Conformer in blocks of 4 s, a Q-Former over windows of 0.3 s, a Granite decoder.

Its embeddings, the audio's among them, are multiplied by `embedding_multiplier`, which its decoder does by itself. Logits are
divided by `logits_scaling` in `GraniteForCausalLM`, as the decoder was trained; the speech class of transformers (5.10 to 5.23) leaves
it out. Here they are divided: losses, scores, beams and a bundle are the decoder's. The likeliest token is the same.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import HOP_LENGTH, AudioSpec, FeatureSpec, PromptSpec
from prunella.speech_llm.families.chat_prompt import (
    AUDIO,
    chat_template,
    rendered,
    says,
    split_at_audio,
)
from prunella.speech_llm.families.conformer import ConformerEncoder, WindowProjector
from prunella.speech_llm.families.family import AudioGeometry, Family, language_model

_PAIR = 2  # frames in a row of the encoder
_SHORTEST = 2 * HOP_LENGTH  # samples of a row; torchaudio wants more than half a transform
_N_FFT = 512
# Of the models' cards.
_INSTRUCTION = "can you transcribe the speech into a written format?"
_SYSTEM = (
    "Knowledge Cutoff Date: April 2024.\nToday's Date: April 9, 2025.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)
_USUAL_PROMPT = f"USER: {{audio}}{_INSTRUCTION}\n ASSISTANT:"
_TODAY = "strftime_now"  # what templates call for a date


def window_tokens(rows: Any, window: int, tokens: int) -> Any:
    """Audio tokens of so many encoder rows: so many for every window that is begun."""
    return (rows + window - 1) // window * tokens


def geometry(config: Any, trimmed: bool) -> AudioGeometry:
    """See `Family.geometry`."""
    encoder, window = config.encoder_config, config.window_size
    tokens = window // config.downsample_rate
    features = FeatureSpec(
        num_mel_bins=encoder.input_dim // _PAIR,
        min_samples=_SHORTEST,
        multiple=1,
        extra=0,
        frame_multiple=window,
        valid="floor",
        n_fft=_N_FFT,
        mel_scale="htk",
        last_frame=True,
        stack=_PAIR,
        stack_step=_PAIR,
    )
    row = _PAIR * HOP_LENGTH
    kept = getattr(encoder, "cat_hidden_layers", None) or ()
    return AudioGeometry(
        audio=AudioSpec(features=features, samples_per_token=row * window // tokens),
        encoder_width=encoder.hidden_dim * (1 + len(set(kept))),
        frames_per_token=config.downsample_rate,
        samples_per_frame=row,
        encoder_frames=lambda frames: frames,
        audio_tokens=partial(window_tokens, window=window, tokens=tokens),
    )


def audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    """See `Family.audio_half`."""
    kept = getattr(stock.config.encoder_config, "cat_hidden_layers", None) or ()
    return ConformerEncoder(stock.model.encoder, kept), WindowProjector(stock.model.projector)


def prompt(
    config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, eos_ids: tuple[int, ...]
) -> PromptSpec:
    """See `Family.prompt`.

    The template is of a text LLM, to which audio is a token of the text; one that takes pieces is asked with those.

    Raises:
        CheckpointError: the folder's template cannot be rendered, or drops the audio.
    """
    audio = config.audio_token_id
    placeholder = str(tokenizer.convert_ids_to_tokens(audio))
    # One that names today's date gives another prompt tomorrow.
    dated = _TODAY in (chat_template(tokenizer, folder) or "")
    before = [{"role": "system", "content": _SYSTEM}] if dated else []
    found, failure = "", None
    contents: tuple[Any, ...] = (f"{placeholder}{_INSTRUCTION}", [AUDIO, says(_INSTRUCTION)])
    for content in contents:
        messages = [*before, {"role": "user", "content": content}]
        try:
            found = rendered(tokenizer, folder, messages, "", audio, add_generation_prompt=True)
        except CheckpointError as error:
            failure = error
            continue
        if placeholder in found:
            break
    if not found and failure is not None:
        raise failure
    text = found or _USUAL_PROMPT.format(audio=placeholder)
    return split_at_audio(text, tokenizer, audio, eos_ids)


def stock_inputs(heard: torch.Tensor, valid: int) -> dict[str, Any]:
    """See `Family.stock_inputs`: its mask is of audio tokens, for batches."""
    return {"input_features": heard[:, :valid].T[None]}


def stock_logits(config: Any) -> float:
    """See `Family.stock_logits`."""
    return float(getattr(config.text_config, "logits_scaling", 1.0))


FAMILY = Family(
    model_type="granite_speech",
    architecture="GraniteSpeechForConditionalGeneration",
    since="5.10",
    geometry=geometry,
    audio_half=audio_half,
    prompt=prompt,
    as_causal_lm=language_model,
    true_length=True,
    stock_windows=False,
    stock_inputs=stock_inputs,
    stock_logits=stock_logits,
    mmproj="granite_speech",
)
