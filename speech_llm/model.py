"""The model as this project sees it: an audio encoder, a projector, an LLM decoder and a fixed prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import PromptSpec
from prunella.speech_llm.config import SpeechLLMConfig
from prunella.speech_llm.ctc_head import CtcHead
from prunella.speech_llm.decoder_view import DecoderView, decoder_view
from prunella.speech_llm.ultravox import UltravoxProjector
from prunella.speech_llm.whisper_encoder import TrueLengthWhisperEncoder

# One line a family: what builds the projector from the configuration. All have a Whisper encoder so far.
PROJECTORS: dict[str, Callable[[SpeechLLMConfig], nn.Module]] = {"ultravox": UltravoxProjector}


class SpeechLLM(nn.Module):
    """Audio encoder → projector → any Hugging Face causal LM that has a plain list of layers."""

    def __init__(
        self, config: SpeechLLMConfig, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        super().__init__()
        if config.family not in PROJECTORS:
            raise CheckpointError(f"no model family '{config.family}': there are {', '.join(PROJECTORS)}")
        if decoder.config.hidden_size != config.text_hidden_size:
            raise CheckpointError(
                f"the projector makes vectors of {config.text_hidden_size}, the decoder takes {decoder.config.hidden_size}: "
                "use the decoder that the projector was trained for"
            )
        self.config = config
        self.audio_encoder = TrueLengthWhisperEncoder(config.audio_encoder)
        self.projector = PROJECTORS[config.family](config)
        self.ctc_head = CtcHead(config) if config.ctc_alphabet else None
        self.decoder = decoder
        self.tokenizer = tokenizer
        # As token ids. The prompt's own text decides: nothing is added by the tokenizer.
        self.prompt: PromptSpec = tokenize_prompt(config, tokenizer)

    def embed_audio(self, log_mel: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, num_mel_bins, mel_frames) → (batch, audio_tokens, hidden) in the decoder's embedding space.

        `frames` (batch,): true encoder frames of each row when rows were padded; the rows' own tokens are unchanged by it.
        """
        tokens: torch.Tensor = self.projector(self.audio_encoder(log_mel, frames))
        return tokens

    def embed_tokens(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(..., n) int64 → (..., n, hidden)."""
        rows: torch.Tensor = self.view.embeddings(token_ids)
        return rows

    def add_ctc_head(self, alphabet: str) -> CtcHead:
        """Give the model a CTC head that has learned nothing yet, in place of any other."""
        self.config = replace(self.config, ctc_alphabet=alphabet)
        self.ctc_head = CtcHead(self.config)
        return self.ctc_head

    def remove_ctc_head(self) -> None:
        """What an audio encoder needs that is no longer the one which the head listened to."""
        self.config, self.ctc_head = replace(self.config, ctc_alphabet=""), None

    @property
    def view(self) -> DecoderView:
        """Where the decoder keeps its layers, projections, embeddings and head."""
        return decoder_view(self.decoder)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, in order."""
        return self.view.layers


def tokenize_prompt(config: SpeechLLMConfig, tokenizer: PreTrainedTokenizerBase) -> PromptSpec:
    """Token ids of the fixed prompt.

    Raises:
        CheckpointError: the end token is not one token of this tokenizer.
    """
    prompt = config.prompt
    eos = tokenizer.convert_tokens_to_ids(prompt.eos_token)
    if not isinstance(eos, int) or tokenizer.convert_ids_to_tokens(eos) != prompt.eos_token:
        raise CheckpointError(
            f"the tokenizer has no token {prompt.eos_token!r}: set prompt.eos_token in config.json"
        )
    return PromptSpec(
        before_audio=prompt.before_audio,
        after_audio=prompt.after_audio,
        before_ids=tuple(tokenizer(prompt.before_audio, add_special_tokens=False)["input_ids"]),
        after_ids=tuple(tokenizer(prompt.after_audio, add_special_tokens=False)["input_ids"]),
        eos_ids=(eos,),
        text_style=config.text_style,
    )
