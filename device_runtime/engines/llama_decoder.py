"""A decoder on llama.cpp: tokens or embeddings in, logits out, one text in a cache that can be wound back, or several that branch off it."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.bundle import OptionValue
from prunella.device_runtime.decoding.limits import MAX_BEAMS
from prunella.device_runtime.engines.adaptive_threads import AdaptiveThreads
from prunella.device_runtime.engines.llama_library import last_error, llama_library
from prunella.device_runtime.engines.provider_options import split_llama_options
from prunella.device_runtime.engines.providers import missing_offload

MAX_BRANCHES = MAX_BEAMS
_GGML_TYPE_F32 = 0
_SCALES_ALL = ("gemma", "gemma2")  # llama.cpp multiplies embeddings of audio too, as if it had looked them up
_SEQUENCE = 0  # the text; branches have the numbers behind it, in turn these or those
_BANKS = (range(1, 1 + MAX_BRANCHES), range(1 + MAX_BRANCHES, 1 + 2 * MAX_BRANCHES))


def has_amx() -> bool:
    """Whether this is an x86 CPU with tile registers, as far as Linux says so."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False


class LlamaDecoder:
    """One text model and one context of it. Not thread-safe.

    Args:
        path: of the GGUF file, which was checked: llama.cpp may end the process over a damaged one.
        positions: that the cache holds; branches share what they have in common.
        threads: of the CPU.
        exact: keep the cache in float32 and attention unfused, for comparisons.
        options: llama.cpp's settings by its own names, see `provider_options.LLAMA_OPTIONS`.

    Attributes:
        position: positions of the cache that are filled.
        missing: hardware that the options ask for and that is not used.

    Raises:
        EngineError: llama.cpp is missing, or cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        positions: int,
        threads: int | AdaptiveThreads,
        exact: bool = False,
        options: Mapping[str, OptionValue] | None = None,
    ) -> None:
        self._library = library = llama_library()
        settings = library.llama_model_default_params()
        self.missing = missing_offload(library, options or {})
        of_model, of_context = split_llama_options(options or {})
        if has_amx():
            settings.use_extra_bufts = False  # ggml's AMX kernels crash on small decoders (SIGSEGV, 0.3.36)
        for key, value in of_model.items():
            setattr(settings, key, value)
        self.model = library.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise EngineError(f"llama.cpp cannot load {path} ({last_error()}): export the bundle again")
        weakref.finalize(self, library.llama_model_free, self.model)
        self.hidden_size = int(library.llama_model_n_embd_inp(self.model))
        self.num_layers = int(library.llama_model_n_layer(self.model))
        self.vocabulary = library.llama_model_get_vocab(self.model)
        self.vocab_size = int(library.llama_vocab_n_tokens(self.vocabulary))
        self._divisor = self.hidden_size**0.5 if self._architecture() in _SCALES_ALL else 1.0
        context = library.llama_context_default_params()
        context.n_ctx = context.n_batch = positions
        context.n_ubatch = min(positions, 512)
        context.n_seq_max = _BANKS[-1].stop
        context.kv_unified = True  # so that a copy of a branch is a note on its cells
        self._threads = AdaptiveThreads(threads, adapt=False) if isinstance(threads, int) else threads
        self._threads_now = self._threads.count
        context.n_threads = context.n_threads_batch = self._threads_now
        context.no_perf = True
        for key, value in of_context.items():
            setattr(context, key, value)
        if exact:
            context.type_k = context.type_v = _GGML_TYPE_F32
            context.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = library.llama_init_from_model(self.model, context)
        if not self.context:
            raise EngineError(f"llama.cpp cannot run {path} with {positions} positions ({last_error()})")
        # Registered later, so run earlier: the context goes before its model.
        weakref.finalize(self, library.llama_free, self.context)
        self._memory = library.llama_get_memory(self.context)
        self.capacity = positions
        self.position = 0
        self._tokens = self._batch(0)
        self._embeddings = self._batch(self.hidden_size)
        self._branches: list[int] = []  # sequences that go on from the text
        self._branch_end = 0  # position behind each of them
        self._branch_tokens = self._batch(0, MAX_BRANCHES)

    def _batch(self, width: int, count: int | None = None) -> Any:
        """A batch for `count` (all) positions of the text: of tokens, or of embeddings when `width` is not 0."""
        count = count or self.capacity
        batch = self._library.llama_batch_init(count, width, 1)
        weakref.finalize(self, self._library.llama_batch_free, batch)
        for index in range(count):
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = _SEQUENCE
        return batch

    def _architecture(self) -> str:
        room = ctypes.create_string_buffer(64)
        self._library.llama_model_meta_val_str(self.model, b"general.architecture", room, len(room))
        return room.value.decode()

    def feed_tokens(self, tokens: Sequence[int], *, keep: int = 1) -> Float32:
        """Append tokens → (keep, vocab) logits after the last `keep` of them, valid until the next call.

        Raises:
            EngineError: the cache is full, a token is none of the vocabulary, or llama.cpp gave up.
        """
        if len(tokens) == 1:  # the common case, without numpy
            self._tokens.token[0] = self._checked(tokens[0])
        else:
            ids = np.array([self._checked(token) for token in tokens], np.int32)
            self._require(len(ids))
            ctypes.memmove(self._tokens.token, ids.ctypes.data, ids.nbytes)
        return self._decode(self._tokens, len(tokens), keep)

    def feed_embeddings(self, embeddings: Float32, *, keep: int = 1) -> Float32:
        """Append (n, hidden) embeddings. Returns and raises as `feed_tokens`."""
        rows = np.ascontiguousarray(embeddings, np.float32)
        if self._divisor != 1.0:
            rows = rows / np.float32(self._divisor)
        self._require(len(rows))
        if rows.shape[1] != self.hidden_size:
            raise EngineError(
                f"the audio half makes vectors of {rows.shape[1]}, the decoder takes {self.hidden_size}: "
                "the two files are not of one model; export the bundle again"
            )
        ctypes.memmove(self._embeddings.embd, rows.ctypes.data, rows.nbytes)
        return self._decode(self._embeddings, len(rows), keep)

    def branch(self, tokens: Sequence[int], parents: Sequence[int]) -> Float32:
        """Branch i becomes branch `parents[i]` of the call before with `tokens[i]` appended → (len(tokens), vocab) logits.

        The first call's parent 0 is the text, which stays as it is; feeding or truncating it forgets all branches. Rows are
        valid until the next call.

        Raises:
            EngineError: more than `MAX_BRANCHES`, the cache is full, a token is none of the vocabulary, or llama.cpp gave up.
        """
        if len(tokens) > MAX_BRANCHES:
            raise EngineError(f"llama.cpp follows {MAX_BRANCHES} transcripts at most, not {len(tokens)}")
        library, memory, batch = self._library, self._memory, self._branch_tokens
        before = self._branches or [_SEQUENCE]
        end = self._branch_end if self._branches else self.position
        bank = _BANKS[1] if before[0] in _BANKS[0] else _BANKS[0]
        after = list(bank[: len(tokens)])
        for sequence, parent in zip(after, parents, strict=True):
            library.llama_memory_seq_cp(memory, before[parent], sequence, -1, -1)
        self._forget_branches()
        self._branches, self._branch_end = after, end + 1
        for index, (token, sequence) in enumerate(zip(tokens, after, strict=True)):
            batch.token[index] = self._checked(token)
            batch.pos[index] = end
            batch.seq_id[index][0] = sequence
            batch.logits[index] = True
        batch.n_tokens = len(tokens)
        status = self._run(batch)
        if status != 0:
            self._forget_branches()
            raise EngineError(
                f"llama.cpp could not decode {len(tokens)} transcripts in a cache of {self.capacity} positions "
                f"(status {status}: {last_error()}): take fewer --beams, or cut the audio into shorter pieces"
            )
        return np.ctypeslib.as_array(library.llama_get_logits(self.context), (len(tokens), self.vocab_size))

    def _forget_branches(self) -> None:
        for sequence in self._branches:
            self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._branches = []

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on.

        Raises:
            EngineError: the model's memory cannot be cut there.
        """
        self._forget_branches()
        if position >= self.position:
            return
        if not self._library.llama_memory_seq_rm(self._memory, _SEQUENCE, position, -1):
            raise EngineError("llama.cpp cannot wind this model's memory back: take the onnx engine")
        self.position = position

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text by the file's own vocabulary, special tokens recognised, nothing added."""
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self.vocabulary, data, len(data), ids, room, False, True)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenise {text!r} ({last_error()})")
        return list(ids[:count])

    def _decode(self, batch: Any, count: int, keep: int) -> Float32:
        self._require(count)
        self._forget_branches()
        batch.n_tokens = count
        for index in range(count):
            batch.pos[index] = self.position + index
            batch.logits[index] = index >= count - keep
        status = self._run(batch)
        if status != 0:
            self._library.llama_memory_seq_rm(self._memory, _SEQUENCE, self.position, -1)
            raise EngineError(f"llama.cpp could not decode (status {status}: {last_error()})")
        self.position += count
        if not keep:
            return np.empty((0, self.vocab_size), np.float32)
        return np.ctypeslib.as_array(self._library.llama_get_logits(self.context), (keep, self.vocab_size))

    def _run(self, batch: Any) -> int:
        """llama.cpp's status."""
        with self._threads:
            count = self._threads.count
            if count != self._threads_now:
                self._library.llama_set_n_threads(self.context, count, count)
                self._threads_now = count
            return int(self._library.llama_decode(self.context, batch))

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise EngineError(f"token {token} is not in the vocabulary of {self.vocab_size}")
        return token

    def _require(self, count: int) -> None:
        needed = self.position + count
        if needed > self.capacity:
            raise EngineError(
                f"prompt, audio and text need {needed} positions, the cache has {self.capacity}: "
                "cut the audio into shorter pieces"
            )
