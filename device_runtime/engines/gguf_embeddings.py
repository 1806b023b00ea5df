"""The token embeddings of a GGUF file, dequantised row by row by llama.cpp's own functions.

llama.cpp takes embeddings but gives none back. With them the prompt's end joins the audio in one pass, and drafts can
be read off the audio.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.engines.llama_library import llama_library

_TABLE = b"token_embd.weight"
_FLOAT32 = 0
_ROWS = {"f16": "ggml_fp16_to_fp32_row", "bf16": "ggml_bf16_to_fp32_row"}
_LOG = logging.getLogger(__name__)


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class TokenEmbeddings:
    """Rows of the embedding table, mapped from the file.

    Raises:
        AttributeError: this llama-cpp-python hides ggml's functions.
        LookupError: the file has no such table, or of a type without a function here.
    """

    def __init__(self, path: Path, vocab_size: int, width: int) -> None:
        library = llama_library().llama_cpp._lib  # noqa: SLF001
        init = _function(library, "gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _InitParams)
        free = _function(library, "gguf_free", None, ctypes.c_void_p)
        find = _function(library, "gguf_find_tensor", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p)
        data = _function(library, "gguf_get_data_offset", ctypes.c_size_t, ctypes.c_void_p)
        offset = _function(
            library, "gguf_get_tensor_offset", ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64
        )
        kind_of = _function(library, "gguf_get_tensor_type", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
        row_size = _function(library, "ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)
        name_of = _function(library, "ggml_type_name", ctypes.c_char_p, ctypes.c_int)
        file = init(str(path).encode(), _InitParams(True, None))
        if not file:
            raise LookupError(f"{path} cannot be opened")
        try:
            index = find(file, _TABLE)
            if index < 0:
                raise LookupError(f"{path} has no {_TABLE.decode()}")
            kind = kind_of(file, index)
            start = data(file) + offset(file, index)
        finally:
            free(file)
        self._width = width
        self._convert: Any = None
        if kind != _FLOAT32:
            name = name_of(kind).decode()
            symbol = _ROWS.get(name, f"dequantize_row_{name}")
            self._convert = _function(library, symbol, None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        size = row_size(kind, width)
        self._rows = np.memmap(path, np.uint8, "r", start, (vocab_size, size))

    def __call__(self, tokens: Sequence[int]) -> Float32:
        """(len(tokens), width) float32."""
        found = np.empty((len(tokens), self._width), np.float32)
        for row, token in zip(found, tokens, strict=True):
            stored = np.ascontiguousarray(self._rows[token])
            if self._convert is None:
                row[:] = stored.view(np.float32)
            else:
                self._convert(stored.ctypes.data, row.ctypes.data, self._width)
        return found


def open_token_embeddings(path: Path, vocab_size: int, width: int) -> TokenEmbeddings | None:
    """The table of a file that was checked, or None (logged) where it cannot be read: all works without, some slower."""
    try:
        return TokenEmbeddings(path, vocab_size, width)
    except (AttributeError, LookupError) as error:
        _LOG.info("no token embeddings from %s (%s): decoding goes on without drafts", path.name, error)
        return None


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = library[name]  # a new object, so that its types are nobody else's
    function.restype, function.argtypes = result, arguments
    return function
