"""llama.cpp's own quantisation of a float GGUF file, checked afterwards."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import ExportError
from prunella.device_runtime.engines.llama_library import last_error, llama_library
from prunella.quantize.gguf_files import FILE_TYPE, FLOAT_TYPES, GgufFile, read_gguf
from prunella.quantize.gguf_probe import probe_logits
from prunella.quantize.gguf_recipes import GgufRecipe

_ADDED = "quantize.imatrix."  # keys that an importance matrix leaves behind
# Share of a tensor's energy that its stored form may miss: 4 bits without a lucky scale miss about 1 %.
_MAX_LOSS = 0.05


@dataclass(frozen=True)
class GgufReport:
    """What quantising a decoder gave.

    Attributes:
        bits_per_weight: of all tensors together.
        quantized: tensors that are no longer float.
        fallbacks: those of them that llama.cpp had to store as another type, because their rows are not a multiple of 256.
        bytes: of the file.
        types: number of tensors by type.
    """

    bits_per_weight: float
    quantized: int
    fallbacks: int
    bytes: int
    types: dict[str, int]


def quantize_decoder(
    source: Path,
    out: Path,
    recipe: GgufRecipe,
    *,
    importance: Mapping[str, Float32] | None = None,
    threads: int = 0,
) -> GgufReport:
    """Write the float decoder file `source` as `recipe` to `out`, and check what was written.

    Args:
        importance: name of a tensor in the file → (row length,) mean square of what is multiplied with each column.
        threads: 0 for one per processor.

    Raises:
        ExportError: llama.cpp failed, or the file does not say what `source` says.
    """
    library = llama_library()
    settings = library.llama_model_quantize_default_params()
    settings.ftype = recipe.ftype
    settings.nthread = threads
    matrices = _importance_array(library, importance or {})
    if importance:
        settings.imatrix = matrices
    status = library.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings))
    if status != 0:
        raise ExportError(f"llama.cpp cannot quantise {source.name} as {recipe.name} ({last_error()})")
    before, after = read_gguf(source), read_gguf(out)
    _check(before, after)
    logits = probe_logits(out, [int(token) for token in np.linspace(0, 1, 8) * (_vocabulary(after) - 1)])
    if not np.isfinite(logits).all():
        raise ExportError(f"{out.name} gives logits that are no numbers: take another recipe")
    return describe(after, recipe)


def describe(file: GgufFile, recipe: GgufRecipe) -> GgufReport:
    """Bits per weight and fallbacks of a decoder's file."""
    kinds = [tensor.kind for tensor in file.tensors.values()]
    quantized = [tensor for tensor in file.tensors.values() if tensor.kind not in FLOAT_TYPES]
    fallbacks = [tensor for tensor in quantized if tensor.kind.name not in recipe.types]
    return GgufReport(
        round(file.bits_per_weight, 2),
        len(quantized),
        len(fallbacks),
        file.path.stat().st_size,
        {kind.name: kinds.count(kind) for kind in sorted(set(kinds))},
    )


def _importance_array(library: object, importance: Mapping[str, Float32]) -> ctypes.Array:
    """llama.cpp's list, ended by an entry without a name; its entries keep the arrays alive."""
    entry = library.llama_model_imatrix_data  # type: ignore[attr-defined]
    array = (entry * (len(importance) + 1))()
    for index, (name, values) in enumerate(importance.items()):
        buffer = (ctypes.c_float * values.size)(*values.tolist())
        array[index] = entry(name.encode(), buffer, values.size)
    return array


def _vocabulary(file: GgufFile) -> int:
    return file.tensors["token_embd.weight"].shape[0]


def _check(before: GgufFile, after: GgufFile) -> None:
    """Same keys, same tensors, values within what the types lose."""
    name = after.path.name
    for key, value in before.keys.items():
        if key != FILE_TYPE and after.keys.get(key) != value:
            raise ExportError(f"{name}: the key {key} did not survive quantisation: report it")
    extra = {key for key in after.keys if key not in before.keys and not key.startswith(_ADDED)}
    if extra or set(before.tensors) != set(after.tensors):
        odd = min(extra or set(before.tensors) ^ set(after.tensors))
        raise ExportError(f"{name}: {odd} appeared or went away in quantisation: report it")
    for key, source in before.tensors.items():
        stored = after.tensors[key]
        expected = source.values()
        if stored.shape != source.shape:
            raise ExportError(f"{name}: {key} is {stored.shape}, should be {source.shape}: report it")
        energy = float(np.square(expected).sum(dtype=np.float64))
        lost = float(np.square(stored.values() - expected).sum(dtype=np.float64))
        if not lost <= _MAX_LOSS * energy:
            raise ExportError(
                f"{name}: {key} lost {100 * lost / max(energy, 1e-30):.0f} % of its energy: take more bits"
            )
