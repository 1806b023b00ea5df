"""Which tensor of a GGUF file is which parameter of a decoder, and what of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import CheckpointError
from prunella.export.gguf_families import FAMILIES, Family

_HEAD_ROW_PAIRS = 2  # Hugging Face rotates (first half, second half), llama.cpp's Llama pairs of neighbours
# Experts' gate and up matrices are one parameter in transformers, two in the file.
_JOINED, _HALVES = "experts.gate_up_proj", ("experts.gate_proj", "experts.up_proj")


@dataclass(frozen=True)
class Stored:
    """One tensor of the file.

    Attributes:
        source: the parameter's name in transformers.
        heads: of a q or k projection whose rows are reordered; 0 for all else.
        shift: what is added to it.
        half: of its rows that are meant; None: all.
    """

    source: str
    heads: int = 0
    shift: float = 0.0
    half: int | None = None

    def of(self, weights: Mapping[str, Float32]) -> Float32:
        """Its values, rows in Hugging Face's order: (..., rows, columns) or (n,) float32."""
        values = weights[self.source]
        if self.half is not None:
            values = np.split(values, 2, axis=-2)[self.half]
        return values + np.float32(self.shift) if self.shift else values


def source_weights(decoder: PreTrainedModel) -> Mapping[str, Float32]:
    """The decoder's parameters by their Hugging Face names, without a copy; a tied head is left out."""
    tied = bool(decoder.config.tie_word_embeddings)
    parameters = decoder.state_dict().items()
    return {
        name: parameter.detach().float().cpu().numpy()
        for name, parameter in parameters
        if not (tied and name == "lm_head.weight") and not name.endswith("inv_freq")
    }


def stored_tensors(decoder: PreTrainedModel, family: Family) -> dict[str, Stored]:
    """Name in the file → what stands there, for every parameter.

    Raises:
        CheckpointError: the decoder has a weight that this architecture of llama.cpp would not use.
    """
    config = decoder.config
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    stored: dict[str, Stored] = {}
    for source in source_weights(decoder):
        shift = family.norm_shift if source.endswith("norm.weight") else 0.0
        parts: tuple[tuple[str, int | None], ...] = ((source, None),)
        if source.endswith(_JOINED):
            parts = tuple((source.replace(_JOINED, name), half) for half, name in enumerate(_HALVES))
        for name, half in parts:
            target = names.get_name(
                name if name.endswith((".weight", ".bias")) else f"{name}.weight", (".weight", ".bias")
            )
            if target is None or _is_dropped(name, family):
                kinds = ", ".join(FAMILIES)
                raise CheckpointError(
                    f"llama.cpp's {gguf.MODEL_ARCH_NAMES[family.arch]} has no {name}: only plain {kinds} decoders "
                    "are written to GGUF; take the onnx engine"
                )
            stored[target] = Stored(source, _rotary_heads(name, config, family), shift, half)
    return stored


def _is_dropped(source: str, family: Family) -> bool:
    projection = source.split(".")[-2]
    if source.endswith(".bias") and projection not in family.biases:
        return True
    return projection in ("q_norm", "k_norm") and not family.qk_norm


def _rotary_heads(source: str, config: object, family: Family) -> int:
    projection = source.split(".")[-2]
    if not family.permuted or projection not in ("q_proj", "k_proj"):
        return 0
    heads: int = config.num_attention_heads  # type: ignore[attr-defined]
    return heads if projection == "q_proj" else getattr(config, "num_key_value_heads", None) or heads


def permute_heads(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """(heads * size, ...) of a q or k projection, or its bias: halves of each head to pairs of neighbours."""
    size = rows.shape[0] // heads
    halves = rows.reshape(heads, _HEAD_ROW_PAIRS, size // _HEAD_ROW_PAIRS, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def unpermute_heads(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Inverse of `permute_heads`."""
    size = rows.shape[0] // heads
    pairs = rows.reshape(heads, size // _HEAD_ROW_PAIRS, _HEAD_ROW_PAIRS, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
