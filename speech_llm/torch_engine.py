"""The PyTorch engine: what the exported engines are compared with, and what evaluates a model before it is exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import DynamicCache

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.decoding.engine import check_rewind
from prunella.device_runtime.decoding.time_marks import with_time_marks
from prunella.device_runtime.sound.features import features
from prunella.device_runtime.transcript import DecodeOptions
from prunella.speech_llm.families.family import projected
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.process import tune
from prunella.speech_llm.stock import hear_true_length

if TYPE_CHECKING:
    from prunella.device_runtime.transcriber import Transcriber


class TorchEngine:
    """`device_runtime.engine.Engine` over a `SpeechLLM`, eager float32, one utterance at a time."""

    def __init__(self, model: SpeechLLM) -> None:
        self.name = "torch-float32"
        self.near_tie_margin = 0.0
        self.ctc_log_probs: Float32 | None = None
        self.has_ctc_head = model.ctc_head is not None
        self.most_beams: int | None = None
        self._model = model
        self._cache = DynamicCache()
        self._start = 0  # positions of the cache that prompt and audio fill
        prompt = model.prompt
        with torch.inference_mode():
            self._before = model.embed_tokens(torch.tensor([prompt.before_ids]))
            self._after = model.embed_tokens(torch.tensor([prompt.after_ids]))
        self._prompt = prompt

    @torch.inference_mode()
    def encode(self, samples: Float32) -> Float32:
        """See `Engine.encode`."""
        model = self._model
        heard, valid = model_features(model, samples)
        frames = model.config.encoder_frames(valid)
        padded = valid < heard.shape[1]
        told = torch.tensor([valid]) if padded else None
        encoded = model.audio_encoder(heard[None], told)
        self.ctc_log_probs = None
        if model.ctc_head is not None:
            letters = model.ctc_head(encoded[:, :frames])[0]
            self.ctc_log_probs = _array(letters)
        rows = projected(
            model.projector, encoded, None if told is None else model.config.encoder_frames(told)
        )
        return _array(rows[0, : model.config.audio_tokens(frames)])

    @torch.inference_mode()
    def start(self, audio_embeddings: Float32, after: tuple[int, ...] | None = None) -> Float32:
        """See `Engine.start`."""
        self._cache = DynamicCache()
        embeddings = torch.cat([self._before, self._heard(audio_embeddings), self._behind(after)], dim=1)
        self._start = embeddings.shape[1]
        return self._forward(inputs_embeds=embeddings)

    @torch.inference_mode()
    def step(self, token: int) -> Float32:
        """See `Engine.step`."""
        return self._forward(input_ids=torch.tensor([[token]]))

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> Float32:
        """See `Engine.extend`."""
        if not tokens:
            return np.empty((0, self._model.view.vocab_size), np.float32)
        output = self._model.decoder(
            input_ids=torch.tensor([list(tokens)]), past_key_values=self._cache, use_cache=True
        )
        return _array(output.logits[0])

    @torch.inference_mode()
    def step_beams(self, tokens: Sequence[int], parents: Sequence[int]) -> Float32:
        """See `BeamEngine.step_beams`."""
        self._cache.batch_select_indices(torch.tensor(list(parents)))
        output = self._model.decoder(
            input_ids=torch.tensor([[token] for token in tokens]), past_key_values=self._cache, use_cache=True
        )
        return _array(output.logits[:, -1])

    def rewind(self, count: int) -> None:
        """See `Engine.rewind`.

        Raises:
            EngineError: so many were not appended since `start`.
        """
        check_rewind(count, self._cache.get_seq_length() - self._start)
        if count:
            self._cache.crop(-count)

    def token_embeddings(self, tokens: Sequence[int]) -> None:
        """See `Engine.token_embeddings`: none, since this engine is the plain one that others are compared with."""

    @torch.inference_mode()
    def score(
        self, audio_embeddings: Float32, tokens: list[int], after: tuple[int, ...] | None = None
    ) -> Float32:
        """See `Engine.score`."""
        target = torch.tensor(tokens)
        parts = [self._before, self._heard(audio_embeddings), self._behind(after)]
        if len(tokens) > 1:
            parts.append(self._model.embed_tokens(target[None, :-1]))
        view = self._model.view
        logits = view.logits(view.run(torch.cat(parts, dim=1))[0, -len(tokens) :])
        return _array(torch.nn.functional.cross_entropy(logits.float(), target, reduction="none"))

    def _heard(self, audio_embeddings: Float32) -> torch.Tensor:
        """(1, n, hidden) of the audio and what stands among it."""

        def embed(ids: tuple[int, ...]) -> Float32:
            return _array(self._model.embed_tokens(torch.tensor(ids)))

        return torch.from_numpy(with_time_marks(audio_embeddings, self._prompt, embed))[None]

    def _behind(self, after: tuple[int, ...] | None) -> torch.Tensor:
        if after is None:
            return self._after
        return self._model.embed_tokens(torch.tensor([after], dtype=torch.int64))

    def _forward(self, **inputs: torch.Tensor) -> Float32:
        output = self._model.decoder(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return _array(output.logits[0, -1])


def _array(tensor: torch.Tensor) -> Float32:
    return tensor.float().numpy()


def model_features(model: SpeechLLM, samples: Float32) -> tuple[torch.Tensor, int]:
    """(n,) samples at 16 kHz → (num_mel_bins, frames), padded as the model was trained, and how many frames are audio's."""
    heard, valid = features(samples, model.config.audio.features)
    return torch.from_numpy(heard), valid


def model_transcriber(model: SpeechLLM, options: DecodeOptions | None = None) -> Transcriber:
    """A transcriber around a model in memory."""
    from prunella.device_runtime.sound.speech_gate import open_speech_gate
    from prunella.device_runtime.transcriber import Transcriber

    tokenizer: Tokenizer = model.tokenizer.backend_tokenizer
    return Transcriber(
        TorchEngine(model),
        tokenizer,
        model.config.audio,
        model.prompt,
        options or model.config.decode,
        open_speech_gate(),
    )


def open_model_transcriber(
    name: str | Path,
    *,
    options: DecodeOptions | None = None,
    threads: int | None = None,
    trimmed: bool = False,
) -> Transcriber:
    """A transcriber for an embedded name, a checkpoint folder or a Hugging Face id, on `threads` CPU threads.

    `trimmed`: see `stock.hear_true_length`. Tunes the process as commands are (`process.tune`): those that are free of torch come to it here.
    """
    tune()
    if threads:
        torch.set_num_threads(threads)
    model = load(name)
    if trimmed:
        hear_true_length(model)
    return model_transcriber(model, options)
