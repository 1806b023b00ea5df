"""The audio half of a bundle on libmtmd, llama.cpp's own: of most layouts, always 30 s of audio."""

from __future__ import annotations

import ctypes
import weakref
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.bundle import FeatureSpec
from prunella.device_runtime.engines.llama_library import last_error, llama_library, mtmd_library

_MAX_SECONDS = 29.9  # from 30.0 s on libmtmd adds a second window, of silence


class MtmdEncoder:
    """Samples to embeddings through the `mmproj` file. Not thread-safe.

    Args:
        mmproj: the audio half's file.
        decoder: the text model's file, of which libmtmd reads the vocabulary and the width.
        threads: of the CPU.
        sampling_rate: of the samples; must be libmtmd's.
        chunks: the model's features, where the layout fills them up to chunks (qwen3a): rows behind the audio's are left out.
        prompt_tokens: whether its first and last embedding are of tokens that the prompt has, and left out here.

    Raises:
        EngineError: libmtmd is missing, cannot load the files, or wants another rate.
    """

    def __init__(
        self,
        mmproj: Path,
        decoder: Path,
        *,
        threads: int,
        sampling_rate: int = 16_000,
        prompt_tokens: bool = False,
        chunks: FeatureSpec | None = None,
    ) -> None:
        library = llama_library()
        self._mtmd = mtmd = mtmd_library()
        settings = library.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = library.llama_model_load_from_file(str(decoder).encode(), settings)
        if not self._model:
            raise EngineError(f"llama.cpp cannot load {decoder} ({last_error()}): export the bundle again")
        weakref.finalize(self, library.llama_model_free, self._model)
        options = mtmd.mtmd_context_params_default()
        options.n_threads = threads
        options.print_timings = False
        options.warmup = False
        self._context = mtmd.mtmd_init_from_file(str(mmproj).encode(), self._model, options)
        if not self._context:
            raise EngineError(f"libmtmd cannot load {mmproj} ({last_error()}): export the bundle again")
        weakref.finalize(self, mtmd.mtmd_free, self._context)
        self._width = int(library.llama_model_n_embd_inp(self._model))
        rate = mtmd.mtmd_get_audio_sample_rate(self._context)
        if rate != sampling_rate:
            raise EngineError(
                f"libmtmd takes audio at {rate} Hz with {mmproj}, the bundle at {sampling_rate} Hz"
            )
        self.ctc_log_probs: Float32 | None = None  # llama.cpp's audio half has no CTC head
        self.has_ctc_head = False
        self._edge = int(prompt_tokens)
        self._chunks = chunks
        self._limit = int(_MAX_SECONDS * sampling_rate)

    def encode(self, samples: Float32) -> Float32:
        """(n,) mono float32, at most 29.9 s → (tokens of 30 s, or of the audio (qwen3a, granite_speech), hidden) float32.

        Raises:
            EngineError: longer, or libmtmd failed.
        """
        if len(samples) > self._limit:
            raise EngineError(
                f"libmtmd encodes up to {_MAX_SECONDS} s in one piece: cut the audio into shorter ones"
            )
        mtmd = self._mtmd
        heard = None if self._chunks is None else chunk_rows(len(samples), self._chunks)
        if self._chunks is not None:
            samples = np.pad(samples, (0, max(0, self._chunks.min_samples - len(samples))))
        data = np.ascontiguousarray(samples, np.float32)
        with ExitStack() as stack:
            pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            bitmap = mtmd.mtmd_bitmap_init_from_audio(len(data), pointer)
            stack.callback(mtmd.mtmd_bitmap_free, bitmap)
            chunks = mtmd.mtmd_input_chunks_init()
            stack.callback(mtmd.mtmd_input_chunks_free, chunks)
            marker = mtmd.mtmd_default_marker()
            text = mtmd.mtmd_input_text(marker, len(marker), False, True)
            bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            if mtmd.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1) != 0:
                raise EngineError(f"libmtmd cannot read the audio ({last_error()})")
            rows = []
            for index in range(mtmd.mtmd_input_chunks_size(chunks)):
                chunk = mtmd.mtmd_input_chunks_get(chunks, index)
                if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_AUDIO:
                    continue
                if mtmd.mtmd_encode_chunk(self._context, chunk) != 0:
                    raise EngineError(f"libmtmd cannot encode the audio ({last_error()})")
                shape = (int(mtmd.mtmd_input_chunk_get_n_tokens(chunk)), self._width)
                rows.append(np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._context), shape).copy())
        found = np.concatenate(rows)
        return found[self._edge : len(found) - self._edge][:heard]


def chunk_rows(samples: int, spec: FeatureSpec) -> int:
    """Rows of so many samples in layouts of chunks: three convolutions of stride 2 over each chunk, and over what is left."""
    whole, rest = divmod(spec.valid_frames(samples), spec.frame_multiple)
    rows = [spec.frame_multiple, rest]
    for _ in range(3):
        rows = [(count + 1) // 2 for count in rows]
    return whole * rows[0] + rows[1]
