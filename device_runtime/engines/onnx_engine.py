"""A bundle on ONNX Runtime: audio encoder, token embeddings and decoder, the caches bound in place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.beside import beside
from prunella.device_runtime.base.errors import BundleError, EngineError
from prunella.device_runtime.base.onnx_errors import run_errors
from prunella.device_runtime.bundle import Bundle, Provider
from prunella.device_runtime.decoding.engine import ROUNDED_NEAR_TIE, check_rewind
from prunella.device_runtime.engines.adaptive_threads import AdaptiveThreads, engine_threads
from prunella.device_runtime.engines.idle_workers import IdleWorkers
from prunella.device_runtime.engines.kept_graphs import open_graph
from prunella.device_runtime.engines.likelihood import negative_log_likelihood
from prunella.device_runtime.engines.onnx_beams import BeamCaches, bind_caches
from prunella.device_runtime.engines.onnx_library import import_onnxruntime, shrinking
from prunella.device_runtime.engines.providers import Missing, announce, for_decoder

if TYPE_CHECKING:
    from prunella.device_runtime.engines.onnx_audio_encoder import OnnxAudioEncoder

EMBED_TOKENS = "onnx/embed_tokens.onnx"
DECODER = "onnx/decoder_model_merged.onnx"
_LARGE_GRAPH = 16_000_000  # bytes; without its weights one has some 100 kB
_SCORE_CHUNK = 64  # positions of logits held at once while scoring


class OnnxEngine:
    """`device_runtime.engine.Engine` over a bundle's `onnx/` graphs. Not thread-safe.

    Past and present of every layer are one buffer, so that a token costs no copy of the cache, and what stands
    before the audio is prefilled once: an utterance starts by winding the cache back to its end.
    """

    def __init__(self, bundle: Bundle, *, threads: AdaptiveThreads) -> None:
        self._runtime = import_onnxruntime()
        manifest = bundle.manifest
        self.name = f"onnx-{manifest.recipe}"
        self.near_tie_margin = 0.0 if manifest.recipe == "fp32" else ROUNDED_NEAR_TIE
        self.threads = threads
        self.most_beams: int | None = None
        self._audio = manifest.audio
        self._bucket = manifest.buckets.prefill
        self._spec = manifest.decoder
        # Spinning between two operators pays for the decoder's many small ones alone.
        load = functools.partial(
            self._session,
            bundle,
            DECODER,
            for_decoder(manifest.providers),
            threads=threads.most,
            spin=True,
        )
        # A graph with its weights in it takes them twice while it is read: not beside another one.
        alone = bundle.file(DECODER).stat().st_size > _LARGE_GRAPH
        decoder = load if alone else beside(load)
        # Its features, and what follows, are imported while the decoder loads.
        from prunella.device_runtime.decoding.answer import most_around
        from prunella.device_runtime.decoding.time_marks import with_time_marks
        from prunella.device_runtime.engines.onnx_audio_encoder import OnnxAudioEncoder

        self.encoder: OnnxAudioEncoder = OnnxAudioEncoder(bundle, threads=self.threads)
        self._embedder, of_embedder = self._session(bundle, EMBED_TOKENS, threads=1, spin=False)
        self._decoder, of_decoder = decoder()
        self._workers = IdleWorkers(self._runtime, self._decoder, threads.most)
        self.missing = announce((*self.encoder.missing, *of_embedder, *of_decoder))
        self._check_shapes(bundle.path)

        # Audio takes many times the memory of a token.
        self._shrinking = shrinking(self._runtime)
        self._before = self._embed(manifest.prompt.before_ids)
        self._after = self._embed(manifest.prompt.after_ids)
        self._prompt = manifest.prompt
        self._with_time_marks = with_time_marks
        self._position = 0  # positions of the cache that are filled
        self._start = 0  # of them by prompt and audio
        self._prefix_filled = False
        self._utterance = 0  # how many were started
        self._beams = BeamCaches(self._spec.num_layers, self._spec.num_kv_heads, self._spec.head_dim)
        self._branched = -1  # utterance that the beams are of
        self._beam_logits = np.empty((0, 1, self._spec.vocab_size), np.float32)
        self._logits = np.empty((1, 1, self._spec.vocab_size), np.float32)
        seconds = self._audio.max_seconds
        audio_tokens = self._audio.longest_tokens(seconds)
        # Silence behind the audio counts for a cap, see `AudioSpec.heard_seconds`.
        most = self._audio.heard_seconds(int(seconds * self._audio.sampling_rate))
        self.allocate(
            manifest.prompt.most_ids
            + audio_tokens
            + manifest.decode.token_cap(most)
            + most_around(manifest.prompt.answer, seconds)
            + self._bucket
        )
        self._rewind()  # now, beside what Python does while an engine is opened, and not in the first utterance

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int | None = None) -> OnnxEngine:
        """Load the graphs of a verified bundle.

        Args:
            bundle: from `open_bundle`.
            threads: of the CPU, always so many; 0 for one per physical core, None for what the bundle says, and fewer while
                other programs use the cores.

        Raises:
            BundleError: a graph is missing, or is not what the manifest says.
            EngineError: onnxruntime is not installed, or cannot run the graphs.
        """
        return cls(bundle, threads=engine_threads(threads, bundle.manifest.threads))

    def encode(self, samples: Float32) -> Float32:
        """See `Engine.encode`."""
        return self.encoder.encode(samples)

    @property
    def has_ctc_head(self) -> bool:
        """Whether `encode` gives `ctc_log_probs`."""
        return self.encoder.has_ctc_head

    @property
    def ctc_log_probs(self) -> Float32 | None:
        """See `Engine.ctc_log_probs`."""
        return self.encoder.ctc_log_probs

    def start(self, audio_embeddings: Float32, after: tuple[int, ...] | None = None) -> Float32:
        """See `Engine.start`.

        Raises:
            EngineError: prompt and audio are longer than the context.
        """
        self._rewind()
        self._utterance += 1
        behind = self._after if after is None else self._embed(after)
        heard = self._with_time_marks(audio_embeddings, self._prompt, self._embed)
        self._forward(np.concatenate([heard, behind]), keep=1)
        self._start = self._position
        return self._last_logits()

    def step(self, token: int) -> Float32:
        """See `Engine.step`.

        Raises:
            EngineError: the context is full.
        """
        self._forward(self._embed((token,)), keep=1)
        return self._last_logits()

    def extend(self, tokens: Sequence[int]) -> Float32:
        """See `Engine.extend`.

        Raises:
            EngineError: the context is full.
        """
        if not tokens:
            return np.empty((0, self._spec.vocab_size), np.float32)
        rows: Float32 = self._forward(self._embed(tuple(tokens)), keep=len(tokens))[0]
        return rows

    def step_beams(self, tokens: Sequence[int], parents: Sequence[int]) -> Float32:
        """See `BeamEngine.step_beams`.

        Raises:
            EngineError: the context is full.
        """
        beams, count = self._beams, len(tokens)
        if self._branched != self._utterance:
            self._branched = self._utterance
            beams.begin(self._position)
        end = beams.position + 1
        if end > beams.capacity:
            self._check_context(end)
        beams.make_room(
            count, min(max(self.capacity, 2 * end), self._spec.max_context) if end > beams.capacity else end
        )
        rows = beams.place(parents, self._cache)
        if len(self._beam_logits) < count:
            self._beam_logits = np.empty((count, 1, self._spec.vocab_size), np.float32)
        logits = self._beam_logits[:count]
        chosen = np.empty(count, np.int64)
        chosen[rows] = tokens
        inputs = {
            "inputs_embeds": np.ascontiguousarray(self._embed(tuple(chosen.tolist()))[:, None]),
            "attention_mask": np.ones((count, end), np.int64),
            "num_logits_to_keep": np.array(1, np.int64),
        }
        binding = beams.bound(count, self._runtime, self._decoder)
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._run(binding)
        beams.position = end
        said: Float32 = logits[:, 0]
        return said if np.array_equal(rows, np.arange(count)) else said[rows]

    def rewind(self, count: int) -> None:
        """See `Engine.rewind`: what lies behind the new end is overwritten by what comes next.

        Raises:
            EngineError: so many were not appended since `start`.
        """
        check_rewind(count, self._position - self._start)
        self._position -= count

    def token_embeddings(self, tokens: Sequence[int]) -> Float32:
        """See `Engine.token_embeddings`."""
        return self._embed(tuple(tokens))

    def score(
        self, audio_embeddings: Float32, tokens: list[int], after: tuple[int, ...] | None = None
    ) -> Float32:
        """See `Engine.score`.

        Raises:
            EngineError: prompt, audio and text are longer than the context.
        """
        if not tokens:
            return np.zeros(0, np.float32)
        behind = 0 if after is None else len(after) - len(self._after)
        self._require(self._prompt.positions(len(audio_embeddings)) + behind + len(tokens))
        first = self.start(audio_embeddings, after)[None].copy()
        losses = []
        for at in range(0, len(tokens), _SCORE_CHUNK):
            chunk = tokens[at : at + _SCORE_CHUNK]
            # The logits of a chunk's first token are the last of what was before it.
            following = self._forward(self._embed(tuple(chunk)), keep=len(chunk))[0]
            losses.append(negative_log_likelihood(np.concatenate([first, following[:-1]]), chunk))
            first = following[-1:].copy()
        return np.concatenate(losses)

    def _rewind(self) -> None:
        """Forget everything behind the prompt's first part; what lies beyond `_position` is overwritten."""
        if not self._prefix_filled:
            self._position = 0
            if len(self._before):
                self._forward(self._before, keep=1)
            self._prefix_filled = True
        self._position = len(self._before)

    def _forward(self, embeddings: Float32, *, keep: int) -> Float32:
        """Append (n, hidden) to the cache → (1, keep, vocab) logits; with `keep=1` they are in `self._logits`."""
        end = self._position + len(embeddings)
        self._require(end)
        if left_over := self._left_over(len(embeddings)):
            return self._forward_filled_up(embeddings, left_over, keep=keep)
        # Bound by address: these names keep the arrays alive until the run is over.
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeddings[None]),
            "attention_mask": self._ones[:, :end],
            "num_logits_to_keep": np.array(keep, np.int64),
        }
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        logits = self._logits if keep == 1 else np.empty((1, keep, self._spec.vocab_size), np.float32)
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._run(self._binding, self._shrinking if keep < len(embeddings) else None)
        self._position = end
        return logits

    def _run(self, binding: Any, options: Any = None) -> None:
        with run_errors("the decoder"), self.threads:
            self._workers.leave(self.threads.count)
            self._decoder.run_with_iobinding(binding, options)

    def _left_over(self, count: int) -> int:
        """Positions up to a length that a provider has a plan for; a single one has a plan of its own."""
        if not self._bucket or count == 1:
            return 0
        missing = -count % self._bucket
        return missing if self._position + count + missing <= self._spec.max_context else 0

    def _forward_filled_up(self, embeddings: Float32, left_over: int, *, keep: int) -> Float32:
        """`_forward` with so many zeros behind: no position sees what is behind it, and what comes next overwrites them."""
        end = self._position + len(embeddings)
        whole = np.pad(embeddings, ((0, left_over), (0, 0)))
        logits: Float32 = self._forward(whole, keep=keep + left_over)[:, :keep]
        self._position = end
        if keep == 1:
            self._logits[:] = logits
        return logits

    def _embed(self, ids: tuple[int, ...]) -> Float32:
        """(n,) token ids → (n, hidden)."""
        if not ids:
            return np.empty((0, self._spec.hidden_size), np.float32)
        with run_errors("the token embeddings"):
            rows: Float32 = self._embedder.run(None, {"input_ids": np.array([ids], np.int64)})[0][0]
        return rows

    def _last_logits(self) -> Float32:
        last: Float32 = self._logits[0, 0]
        return last

    def _require(self, positions: int) -> None:
        """Make room for so many positions."""
        if positions <= self.capacity:
            return
        self._check_context(positions)
        before, prefix_filled = self._cache, self._prefix_filled
        self.allocate(2 * positions)
        self._prefix_filled = prefix_filled
        for old, new in zip(before, self._cache, strict=True):
            new[:, :, : self._position] = old[:, :, : self._position]

    def _check_context(self, positions: int) -> None:
        if positions > self._spec.max_context:
            raise EngineError(
                f"prompt, audio and text need {positions} positions, the bundle has {self._spec.max_context}: "
                "cut the audio into shorter pieces"
            )

    def allocate(self, positions: int) -> None:
        """One buffer for the keys and one for the values of each layer, bound as past and as present."""
        self.capacity = min(positions, self._spec.max_context)
        self._prefix_filled = False
        shape = (1, self._spec.num_kv_heads, self.capacity, self._spec.head_dim)
        self._ones = np.ones((1, self.capacity), np.int64)
        try:
            self._cache = [np.zeros(shape, np.float32) for _ in range(2 * self._spec.num_layers)]
        except MemoryError as error:
            raise EngineError(
                f"a cache of {self.capacity} positions does not fit in memory: export the bundle for a target with a "
                "smaller max_context"
            ) from error
        self._binding = self._decoder.io_binding()
        bind_caches(self._runtime, self._binding, self._cache)

    def _session(
        self,
        bundle: Bundle,
        name: str,
        providers: tuple[Provider, ...] = (),
        *,
        threads: int,
        spin: bool,
    ) -> tuple[Any, tuple[Missing, ...]]:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")  # not between two runs
        return open_graph(self._runtime, bundle, name, options, providers)

    def _check_shapes(self, where: Path) -> None:
        """The manifest sizes the buffers that native code writes into: it must agree with the graph."""
        spec = self._spec
        shapes = {value.name: value.shape for value in self._decoder.get_inputs()}
        logits = next(
            (value.shape for value in self._decoder.get_outputs() if value.name == "logits"), [None]
        )
        layers = sum(name.startswith("past_key_values.") and name.endswith(".key") for name in shapes)
        cache = shapes.get("past_key_values.0.key", [None] * 4)
        found = (layers, shapes.get("inputs_embeds", [None])[-1], cache[1], logits[-1])
        expected = (spec.num_layers, spec.hidden_size, spec.num_kv_heads, spec.vocab_size)
        if found != expected or "num_logits_to_keep" not in shapes:
            raise BundleError(
                f"{where}: the decoder's graph has (layers, hidden, kv heads, vocabulary) {found}, "
                f"the manifest says {expected}: export the bundle again"
            )
