"""How llama.cpp wants the tensors of an `mmproj` file stored, and a float file stored smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType, LlamaFileType

from prunella.quantize.gguf_files import FILE_TYPE, GgufFile, read_gguf, write_gguf

_FLOAT = ("a.position_embd.weight", "a.proj_query")
MMPROJ_FILE_TYPES = {
    "F32": int(LlamaFileType.ALL_F32),
    "F16": int(LlamaFileType.MOSTLY_F16),
    "Q8_0": int(LlamaFileType.MOSTLY_Q8_0),
}


def mmproj_storage(kind: str) -> Callable[[str, tuple[int, ...]], GGMLQuantizationType]:
    """How a tensor of this name and shape is stored in a file of the kind F32, F16 or Q8_0."""
    matrices = GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[matrices][0]

    def storage(name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
        # What is no matrix of a product: ggml ends the process over a convolution by channels, or a norm, of half floats.
        if name.endswith((".bias", ".conv_dw.weight")) or name in _FLOAT or len(shape) == 1:
            return GGMLQuantizationType.F32
        if name.startswith("a.conv1d") or shape[-1] % block:
            return GGMLQuantizationType.F32 if kind == "F32" else GGMLQuantizationType.F16
        return matrices

    return storage


def quantize_mmproj(source: Path, out: Path, kind: str) -> GgufFile:
    """Store a float `mmproj` file as another kind. Returns the opened file."""
    file = read_gguf(source)
    keys = file.keys | {FILE_TYPE: MMPROJ_FILE_TYPES[kind]}
    tensors = {name: tensor.values() for name, tensor in file.tensors.items()}
    write_gguf(out, keys, tensors, mmproj_storage(kind))
    return read_gguf(out)
