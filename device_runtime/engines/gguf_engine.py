"""A bundle on llama.cpp. The fast path feeds it the embeddings of our audio encoder, which hears the audio's true length.

llama.cpp's own audio half (libmtmd) pads everything to 30 s: it is the compatible path, for machines without
onnxruntime and for comparison.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import BundleError
from prunella.device_runtime.base.extras import explained
from prunella.device_runtime.bundle import Bundle, MmprojSpec
from prunella.device_runtime.decoding.engine import GGUF_NEAR_TIE, check_rewind
from prunella.device_runtime.decoding.limits import PAYING_BEAMS
from prunella.device_runtime.decoding.time_marks import with_time_marks
from prunella.device_runtime.engines.adaptive_threads import AdaptiveThreads, engine_threads
from prunella.device_runtime.engines.gguf_embeddings import open_token_embeddings
from prunella.device_runtime.engines.likelihood import negative_log_likelihood
from prunella.device_runtime.engines.llama_decoder import MAX_BRANCHES, LlamaDecoder
from prunella.device_runtime.engines.providers import Missing, announce

DECODER_PATTERN = "gguf/decoder-*.gguf"
MMPROJ_PATTERN = "gguf/mmproj-*.gguf"
_SCORE_CHUNK = 64  # positions of logits held at once while scoring
_LOG = logging.getLogger(__name__)
AudioHalf = Literal["onnx", "mtmd"]


class AudioEncoder(Protocol):
    """The audio half of a speech LLM."""

    ctc_log_probs: Float32 | None  # see `Engine.ctc_log_probs`
    has_ctc_head: bool  # see `BeamEngine.has_ctc_head`

    def encode(self, samples: Float32) -> Float32:
        """(n,) mono float32 at the bundle's rate → (audio_tokens, hidden) float32."""
        ...


class GgufEngine:
    """`device_runtime.engine.Engine` over a bundle's `gguf/` files. Not thread-safe.

    What stands before the audio stays in the cache: an utterance starts by winding it back to there.
    """

    def __init__(self, bundle: Bundle, encoder: AudioEncoder, *, threads: AdaptiveThreads, name: str) -> None:
        manifest = bundle.manifest
        spec, audio = manifest.decoder, manifest.audio
        self.name = name
        self.near_tie_margin = GGUF_NEAR_TIE
        self.threads = threads
        self._encoder = encoder
        self.ctc_log_probs: Float32 | None = None
        self.most_beams: int | None = MAX_BRANCHES
        self._prompt = manifest.prompt
        longest = audio.longest_tokens(30)  # libmtmd pads to 30 s
        self.has_ctc_head = bool(audio.ctc_alphabet) and encoder.has_ctc_head
        # Scored transcripts may be longer than decoded ones, and beams need not share a word.
        text = (PAYING_BEAMS if self.has_ctc_head else 2) * manifest.decode.token_cap(audio.max_seconds)
        path = one_file(bundle, DECODER_PATTERN)
        self.decoder = LlamaDecoder(
            path,
            positions=min(spec.max_context, self._prompt.most_ids + longest + text),
            threads=threads,
            options=manifest.llama,
        )
        of_encoder: tuple[Missing, ...] = getattr(encoder, "missing", ())
        self.missing = announce((*self.decoder.missing, *of_encoder))
        found = (self.decoder.num_layers, self.decoder.hidden_size, self.decoder.vocab_size)
        expected = (spec.num_layers, spec.hidden_size, spec.vocab_size)
        if found != expected:
            raise BundleError(
                f"{bundle.path}: the decoder has (layers, hidden, vocabulary) {found}, the manifest says {expected}: "
                "export the bundle again"
            )
        if self._prompt.before_ids:
            self.decoder.feed_tokens(self._prompt.before_ids, keep=0)
        self._prefix = self._start = self.decoder.position
        self._embeddings = open_token_embeddings(path, self.decoder.vocab_size, self.decoder.hidden_size)
        self._after = self._embeddings(self._prompt.after_ids) if self._embeddings else None

    @classmethod
    def open(
        cls, bundle: Bundle, *, threads: int | None = None, audio_half: AudioHalf = "onnx"
    ) -> GgufEngine:
        """Load the files of a verified bundle.

        Args:
            bundle: from `open_bundle`.
            threads: of the CPU, always so many; 0 for one per physical core, None for what the bundle says, and fewer while
                other programs use the cores.
            audio_half: "onnx" for our encoder (without onnxruntime, libmtmd's is taken and a warning logged), "mtmd"
                for llama.cpp's.

        Raises:
            BundleError: a file is missing, or is not what the manifest says; llama.cpp has no audio half for the model.
            EngineError: llama.cpp is not installed, or cannot run the files.
        """
        count = engine_threads(threads, bundle.manifest.threads)
        decoder = one_file(bundle, DECODER_PATTERN)
        quant = decoder.stem.partition("-")[2]
        if audio_half == "onnx":
            ours = _onnx_encoder(bundle, count)
            if ours is not None:
                return cls(bundle, ours, threads=count, name=f"gguf-{quant}")
        from prunella.device_runtime.engines.mtmd_encoder import MtmdEncoder

        spec = bundle.manifest.mmproj or MmprojSpec("ultravox")
        if not spec.projector:
            raise BundleError(
                f"{bundle.path} has no audio half for llama.cpp: {spec.note}; take --engine gguf with onnxruntime installed"
            )
        if spec.note:
            _LOG.warning("%s", spec.note)
        mmproj = one_file(bundle, MMPROJ_PATTERN)
        audio = bundle.manifest.audio
        encoder = MtmdEncoder(
            mmproj,
            decoder,
            threads=count.most,
            sampling_rate=audio.sampling_rate,
            prompt_tokens=spec.prompt_tokens,
            chunks=audio.features if spec.projector == "qwen3a" else None,
        )
        return cls(bundle, encoder, threads=count, name=f"mtmd-{quant}")

    def encode(self, samples: Float32) -> Float32:
        """See `Engine.encode`; libmtmd's audio half is the exception and hears 30 s."""
        embeddings = self._encoder.encode(samples)
        self.ctc_log_probs = self._encoder.ctc_log_probs
        return embeddings

    def start(self, audio_embeddings: Float32, after: tuple[int, ...] | None = None) -> Float32:
        """See `Engine.start`.

        Raises:
            EngineError: prompt and audio are longer than the context.
        """
        self.decoder.truncate(self._prefix)
        if self._embeddings is not None and self._after is not None:  # one pass for all
            behind = self._after if after is None else self._embeddings(after)
            heard = with_time_marks(audio_embeddings, self._prompt, self._embeddings)
            logits = self.decoder.feed_embeddings(np.concatenate([heard, behind]))
        else:
            tokens = self._prompt.after_ids if after is None else after
            begun = 0
            for mark in self._prompt.marks_among(len(audio_embeddings)):
                self.decoder.feed_embeddings(audio_embeddings[begun : mark.after], keep=0)
                self.decoder.feed_tokens(mark.ids, keep=0)
                begun = mark.after
            logits = self.decoder.feed_embeddings(audio_embeddings[begun:], keep=0 if tokens else 1)
            logits = self.decoder.feed_tokens(tokens) if tokens else logits
        self._start = self.decoder.position
        last: Float32 = logits[0]
        return last

    def step(self, token: int) -> Float32:
        """See `Engine.step`.

        Raises:
            EngineError: the context is full.
        """
        row: Float32 = self.decoder.feed_tokens((token,))[0]
        return row

    def step_beams(self, tokens: Sequence[int], parents: Sequence[int]) -> Float32:
        """See `BeamEngine.step_beams`.

        Raises:
            EngineError: the context is full, or so many cannot be followed.
        """
        return self.decoder.branch(tokens, parents)

    def extend(self, tokens: Sequence[int]) -> Float32:
        """See `Engine.extend`.

        Raises:
            EngineError: the context is full.
        """
        if not tokens:
            return np.empty((0, self.decoder.vocab_size), np.float32)
        return self.decoder.feed_tokens(tokens, keep=len(tokens))

    def rewind(self, count: int) -> None:
        """See `Engine.rewind`.

        Raises:
            EngineError: so many were not appended since `start`.
        """
        check_rewind(count, self.decoder.position - self._start)
        self.decoder.truncate(self.decoder.position - count)

    def token_embeddings(self, tokens: Sequence[int]) -> Float32 | None:
        """See `Engine.token_embeddings`; libmtmd's 30 s of audio are read as well."""
        return self._embeddings(tokens) if self._embeddings else None

    def score(
        self, audio_embeddings: Float32, tokens: list[int], after: tuple[int, ...] | None = None
    ) -> Float32:
        """See `Engine.score`.

        Raises:
            EngineError: prompt, audio and text are longer than the context.
        """
        if not tokens:
            return np.zeros(0, np.float32)
        before = self.start(audio_embeddings, after)[None].copy()
        losses = []
        for at in range(0, len(tokens), _SCORE_CHUNK):
            chunk = tokens[at : at + _SCORE_CHUNK]
            following = self.extend(chunk)
            losses.append(negative_log_likelihood(np.concatenate([before, following[:-1]]), chunk))
            before = following[-1:].copy()
        return np.concatenate(losses)


def one_file(bundle: Bundle, pattern: str) -> Path:
    """The file of a bundle that fits a pattern.

    Raises:
        BundleError: there is none, or more than one.
    """
    names = [name for name in bundle.manifest.files if Path(name).match(pattern)]
    if len(names) != 1:
        raise BundleError(
            f"{bundle.path} holds {len(names) or 'no'} files like {pattern}, one is needed: "
            "export the model for a target that uses gguf"
        )
    return bundle.file(names[0])


def _onnx_encoder(bundle: Bundle, threads: AdaptiveThreads) -> AudioEncoder | None:
    """Our encoder, or None where onnxruntime is not installed and libmtmd has to stand in."""
    from prunella.device_runtime.engines.onnx_audio_encoder import OnnxAudioEncoder

    try:
        return OnnxAudioEncoder(bundle, threads=threads)
    except ImportError as error:
        _LOG.warning(
            "llama.cpp encodes the audio, always 30 s of it and several times slower: %s",
            explained(error, "the fast path"),
        )
        return None
