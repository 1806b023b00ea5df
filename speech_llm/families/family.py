"""What prunella has to know of a family of speech LLMs. Everything else is generic and asks this object."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.bundle import AudioSpec, PromptSpec

if TYPE_CHECKING:
    from torch import Tensor

Count = TypeVar("Count", int, "Tensor")
WINDOW_SECONDS = 30  # of Whisper and its kin


@dataclass(frozen=True)
class AudioGeometry:
    """How an utterance becomes rows: samples → features (`audio`, data for the device) → encoder frames → audio tokens.

    Attributes:
        audio: features and limits as the device needs them; without letters.
        encoder_width: of an encoder frame.
        frames_per_token: encoder frames that the projector makes one token of.
        samples_per_frame: samples that become one encoder frame.
        encoder_frames: valid feature frames → encoder frames of audio; of one number, or a tensor of them.
        audio_tokens: encoder frames → audio tokens, as `encoder_frames`; None: one for every `frames_per_token`, if whole.
    """

    audio: AudioSpec
    encoder_width: int
    frames_per_token: int
    samples_per_frame: float
    encoder_frames: Callable[[Any], Any]
    audio_tokens: Callable[[Any], Any] | None = None


def projected(projector: nn.Module, encoded: torch.Tensor, frames: torch.Tensor | None) -> torch.Tensor:
    """(batch, n, width) encoder frames, `frames` (batch,) of them audio's (None: all), through a projector → (batch, tokens, hidden).

    One in which tokens attend to one another is told where the audio ends: `takes_frames`.
    """
    tokens: torch.Tensor = (
        projector(encoded, frames) if getattr(projector, "takes_frames", False) else projector(encoded)
    )
    return tokens


def put_text_config(config: Any, decoder: Any) -> None:
    """`Family.put_config` of the usual layout, which has a `text_config`."""
    tied = getattr(config.text_config, "tie_word_embeddings", None)
    config.text_config = copy.deepcopy(decoder)
    config.text_config.tie_word_embeddings = (
        tied  # the decoder's says what is; the stock class goes by its own
    )


def put_language_model(stock: Any, decoder: Any) -> None:
    """`Family.put_decoder` of the usual layout: `model.language_model` and `lm_head`."""
    stock.model.language_model, stock.lm_head = decoder.model, decoder.lm_head


@dataclass(frozen=True)
class Family:
    """One kind of speech LLM. Where transformers has no class for it, what the functions are given says `ultravox.py`.

    Attributes:
        model_type: in `config.json`.
        architecture: the class in transformers that `config.json` names under `architectures`.
        since: version of transformers that has it.
        geometry: (the model's configuration, whether it was healed on audio of its true length) → `AudioGeometry`.
        audio_half: (the stock model, whether it was healed on audio of its true length) → encoder and projector around its
            own parameters. The encoder takes features (batch, bins, frames) and `valid` (batch,) feature frames of audio,
            None for all, and gives (batch, encoder frames, width), rows behind the valid ones being anything; the projector
            turns them into (batch, tokens, hidden), see `projected`.
        prompt: (configuration, tokenizer, folder, end tokens) → what stands around the audio.
        as_causal_lm: the stock model → its decoder as a causal LM of a stock class around the same parameters.
        put_config: (configuration of the stock class, of that causal LM) → nothing: the first says afterwards what the second does.
        put_decoder: (a stock model of such a configuration, that causal LM) → nothing: the first has the second's parameters.
        true_length: whether a model hears the same of audio that is not padded to whole windows.
        stock_windows: whether the stock class takes features of whole 30 s alone.
        stock_inputs: (features (width, frames), valid frames) → what the stock class is given of them, where it is not
            `input_features` as they are and a mask.
        speech_adapter: folder beside the weights with the LoRA adapter that speech is heard with; it is merged. "": there is none.
        stock_logits: configuration → how many times the decoder's logits the stock class's are: see `granite_speech.py`.
        mmproj: llama.cpp's name for the family's projector; None: it has none. What is written by it, or why nothing is,
            says `export/mmproj_layouts.py`.
        layout: "stock": as transformers saves its class; "own": prunella's folder, for what has no class.
    """

    model_type: str
    architecture: str
    since: str
    geometry: Callable[[Any, bool], AudioGeometry]
    audio_half: Callable[[Any, bool], tuple[nn.Module, nn.Module]]
    prompt: Callable[[Any, PreTrainedTokenizerBase, Path, tuple[int, ...]], PromptSpec]
    as_causal_lm: Callable[[PreTrainedModel], PreTrainedModel]
    true_length: bool
    put_config: Callable[[Any, Any], None] = put_text_config
    put_decoder: Callable[[Any, Any], None] = put_language_model
    stock_windows: bool = True
    stock_inputs: Callable[[Tensor, int], dict[str, Any]] | None = None
    speech_adapter: str = ""
    stock_logits: Callable[[Any], float] = field(default=lambda _: 1.0)
    mmproj: str | None = None
    layout: Literal["stock", "own"] = "stock"


def language_model(stock: PreTrainedModel) -> PreTrainedModel:
    """`as_causal_lm` of the usual layout: `model.language_model` and `lm_head`, which a causal LM is made of."""
    body: Any = stock.model.language_model
    # Some classes tie the head, whatever their text configuration says, and some never do.
    body.config.tie_word_embeddings = stock.lm_head.weight is body.get_input_embeddings().weight
    with torch.device("meta"):
        decoder: PreTrainedModel = AutoModelForCausalLM.from_config(body.config)  # type: ignore[no-untyped-call]
    decoder.config = body.config  # one object, so that a cut of one is a cut of both
    decoder.model, decoder.lm_head = body, stock.lm_head
    return decoder
