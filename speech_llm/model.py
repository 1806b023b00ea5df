"""The model as this project sees it: an audio encoder, a projector, an LLM decoder and a fixed prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import PromptSpec, find_language
from prunella.device_runtime.decoding.answer import ENGLISH, AnswerReader, write_answer
from prunella.device_runtime.decoding.text_style import style_text
from prunella.speech_llm.config import ModelConfig, SpeechLLMConfig
from prunella.speech_llm.ctc_head import CtcHead
from prunella.speech_llm.decoder_view import DecoderView, decoder_view
from prunella.speech_llm.families import FAMILIES, family_named
from prunella.speech_llm.families.family import projected

if TYPE_CHECKING:
    from prunella.speech_llm.stock import StockShell


class SpeechLLM(nn.Module):
    """Audio encoder → projector → any Hugging Face causal LM that has a plain list of layers."""

    def __init__(
        self,
        config: ModelConfig,
        decoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        audio_half: tuple[nn.Module, nn.Module] | None = None,
        prompt: PromptSpec | None = None,
        stock: StockShell | None = None,
    ) -> None:
        """Around a decoder. Without `audio_half` and `prompt`, the configuration is a `SpeechLLMConfig`, and both are made of it.

        Args:
            config: of the model.
            decoder: a causal LM of transformers.
            tokenizer: the decoder's.
            audio_half: encoder and projector, see `Family.audio_half`.
            prompt: around the audio.
            stock: the model of a stock class that it was taken out of.
        """
        super().__init__()
        if audio_half is None or prompt is None:
            audio_half, prompt = _own_parts(config, decoder, tokenizer)
        self.config = config
        self.audio_encoder, self.projector = audio_half
        self.ctc_head = CtcHead(config) if config.ctc_alphabet else None
        self.decoder = decoder
        self.tokenizer = tokenizer
        # As token ids. The prompt's own text decides: nothing is added by the tokenizer.
        self.prompt: PromptSpec = prompt
        self.stock = stock

    def with_decoder(self, decoder: PreTrainedModel) -> SpeechLLM:
        """The same speech LLM around another decoder; all else is shared."""
        half = (self.audio_encoder, self.projector)
        other = SpeechLLM(
            self.config, decoder, self.tokenizer, audio_half=half, prompt=self.prompt, stock=self.stock
        )
        other.ctc_head = self.ctc_head
        return other.eval().requires_grad_(False)

    @property
    def own_config(self) -> SpeechLLMConfig:
        """The configuration of a model of prunella's own folder.

        Raises:
            CheckpointError: the model is of a stock class.
        """
        if not isinstance(self.config, SpeechLLMConfig):
            raise CheckpointError(
                f"this is for models of the Ultravox layout, not of the family '{self.config.family}'"
            )
        return self.config

    def embed_audio(self, features: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, num_mel_bins, frames) → (batch, audio_tokens, hidden) in the decoder's embedding space.

        `valid` (batch,): feature frames of audio in each row; None: all. Rows behind a clip's own tokens are anything.
        """
        frames = None if valid is None else self.config.encoder_frames(valid)
        return projected(self.projector, self.audio_encoder(features, valid), frames)

    def prompt_for(self, language: str) -> PromptSpec:
        """The prompt that speech in this language is taught and scored behind.

        It names the language where it has a place for one and the model's answer does not say it anyhow.

        Args:
            language: a code or an English name; "": not known.

        Raises:
            UsageError: a language that the model's prompt does not have.
        """
        if not language or not self.prompt.languages or self.prompt.language:
            return self.prompt
        named = self.prompt.with_language(language)
        return self.prompt if self._answer_kind == "language-tag" else named

    def known_language(self, language: str) -> str:
        """The code of a language that is asked for by code or name; "" for "".

        Raises:
            UsageError: the model's prompt takes no language, or not this one.
        """
        return self.prompt.with_language(language).language if language else ""

    def said(self, text: str) -> str:
        """A transcript as the model writes it, without what it puts around it."""
        return style_text(text, self.config.text_style)

    def answer(self, text: str, language: str = "", *, seconds: float = 0.0) -> str:
        """What the model is to say of a transcript: `said`, with what it puts around it.

        Args:
            text: what is said; "" where nobody speaks.
            language: as of `prompt_for`; "": English. Of use where the answer names it.
            seconds: of the audio. Of use where the answer says when the text ends.

        Raises:
            UsageError: a language that the model's prompt does not have.
        """
        kind = self._answer_kind
        if kind != "language-tag":
            return write_answer(self.said(text), kind, seconds=seconds)
        if not text:
            return write_answer("", kind, "None")  # as `Qwen3ASRProcessor` reads it
        found = find_language(self.prompt.languages, language) if language else None
        return write_answer(self.said(text), kind, found.name if found else ENGLISH)

    @property
    def _answer_kind(self) -> str:
        return AnswerReader.of(self.prompt).answer

    def embed_tokens(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(..., n) int64 → (..., n, hidden)."""
        rows: torch.Tensor = self.view.embeddings(token_ids)
        return rows

    def add_ctc_head(self, alphabet: str) -> CtcHead:
        """Give the model a CTC head that has learned nothing yet, in place of any other."""
        self.config = self.config.with_alphabet(alphabet)
        self.ctc_head = CtcHead(self.config)
        return self.ctc_head

    def remove_ctc_head(self) -> None:
        """What an audio encoder needs that is no longer the one which the head listened to."""
        self.config, self.ctc_head = self.config.with_alphabet(""), None

    @property
    def view(self) -> DecoderView:
        """Where the decoder keeps its layers, projections, embeddings and head."""
        return decoder_view(self.decoder)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, in order."""
        return self.view.layers


def _own_parts(
    config: ModelConfig, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[nn.Module, nn.Module], PromptSpec]:
    """Encoder, projector and prompt that a `SpeechLLMConfig` describes."""
    family = family_named(config.family)
    if not isinstance(config, SpeechLLMConfig) or family is None or family.layout != "own":
        own = ", ".join(one.model_type for one in FAMILIES.values() if one.layout == "own")
        raise CheckpointError(f"no model family '{config.family}' in prunella's own folder: there is {own}")
    if decoder.config.hidden_size != config.text_hidden_size:
        raise CheckpointError(
            f"the projector makes vectors of {config.text_hidden_size}, the decoder takes {decoder.config.hidden_size}: "
            "use the decoder that the projector was trained for"
        )
    return family.audio_half(config, False), family.prompt(config, tokenizer, Path(), ())
