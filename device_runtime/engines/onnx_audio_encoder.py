"""The audio half of a bundle on ONNX Runtime, for engines whose decoder runs elsewhere."""

from __future__ import annotations

import math

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.heap import return_large_blocks
from prunella.device_runtime.base.onnx_errors import run_errors
from prunella.device_runtime.bundle import HOP_LENGTH, Bundle
from prunella.device_runtime.engines.adaptive_threads import AdaptiveThreads
from prunella.device_runtime.engines.idle_workers import IdleWorkers
from prunella.device_runtime.engines.kept_graphs import open_graph
from prunella.device_runtime.engines.onnx_library import shrinking
from prunella.device_runtime.sound.features import features

AUDIO_ENCODER = "onnx/audio_encoder.onnx"
_LONGEST_FRAMES = 3_000  # 30 s: encoders have positions for no more


class OnnxAudioEncoder:
    """Samples to embeddings in the decoder's space, over the audio's true length.

    Args:
        bundle: from `open_bundle`.
        threads: of the CPU.

    Attributes:
        missing: hardware that the bundle asks for and that is not used.
        ctc_log_probs: see `Engine.ctc_log_probs`.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
        BundleError: the bundle has no such graph.
        EngineError: onnxruntime cannot load it.
    """

    def __init__(self, bundle: Bundle, *, threads: int | AdaptiveThreads) -> None:
        import onnxruntime

        return_large_blocks()
        self._threads = AdaptiveThreads(threads, adapt=False) if isinstance(threads, int) else threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads.most
        options.log_severity_level = 3
        # A plan for each length saves no time, and takes as much memory again as soon as a length comes twice.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session, self.missing = open_graph(
            onnxruntime, bundle, AUDIO_ENCODER, options, bundle.manifest.providers
        )
        # What a long clip took is not kept while the decoder needs its own.
        self._run_options = shrinking(onnxruntime)
        self._workers = IdleWorkers(onnxruntime, self.session, self._threads.most)
        self._outputs = [output.name for output in self.session.get_outputs()]
        self._audio = bundle.manifest.audio
        self._bucket = bundle.manifest.buckets.encoder_frames
        self.ctc_log_probs: Float32 | None = None
        self.has_ctc_head = bool(bundle.manifest.audio.ctc_alphabet)

    def encode(self, samples: Float32) -> Float32:
        """(n,) mono float32 at the bundle's rate → (audio_tokens, hidden) float32."""
        heard, valid = features(samples, self._audio.features)
        if missing := self.missing_frames(heard.shape[1]):
            heard = np.pad(heard, ((0, 0), (0, missing)))
        inputs = {"log_mel": heard[None]}
        if self._audio.features.valid != "all":
            inputs["valid_frames"] = np.array([valid], np.int64)
        with run_errors("the audio encoder"), self._threads:
            self._workers.leave(self._threads.count)
            found = dict(zip(self._outputs, self.session.run(None, inputs, self._run_options), strict=True))
        rows: Float32 = found["audio_embeddings"][0]
        letters = found.get("ctc_log_probabilities")
        # Of padded audio the graph gives all rows, and how many are the audio's.
        counts = found.get("valid_rows")
        if counts is not None:
            rows = rows[: int(counts[0])]
        if letters is not None:
            letters = letters[0] if counts is None else letters[0][: int(counts[1])]
        self.ctc_log_probs = letters
        return rows

    def missing_frames(self, frames: int) -> int:
        """Up to a length that a provider has a plan for; none where the graph would take them for the audio's."""
        spec = self._audio.features
        if not self._bucket or spec.valid == "all":
            return 0
        step = math.lcm(self._bucket, spec.frame_multiple, max(1, spec.multiple // HOP_LENGTH))
        missing = -frames % step
        return missing if frames + missing <= _LONGEST_FRAMES else 0
