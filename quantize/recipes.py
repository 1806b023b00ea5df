"""Recipes: which part of a speech LLM is stored how. A new recipe is one entry of `RECIPES`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

INT4_BITS = 4
# ONNX Runtime's kernels take these.
BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class WeightFormat:
    """How the constant matrices of a part are stored and multiplied.

    - "float": as they are.
    - "blockwise": symmetric integers with a scale for every `block_size` inputs of every output channel
      (MatMulNBits). `accuracy_level` 4 quantises activations to int8, each row for itself and in blocks.
    - "channelwise": int8 with a scale per output channel, activations to uint8 with one scale for the whole input
      (MatMulInteger). Ruins decoders, whose attention sinks set that scale; audio encoders bear it and run twice as fast.
    """

    method: Literal["float", "blockwise", "channelwise"]
    bits: int = 32
    block_size: int = 0
    accuracy_level: int = 0


@dataclass(frozen=True)
class Recipe:
    """A way to store a whole bundle.

    Where the audio encoder is quantised, what stays float of it (convolutions, positions) is stored in float16 and computed in
    float32. Tied token embeddings are looked up in the head's own integers, stored once: `embed_tokens` is for others.
    """

    name: str
    summary: str
    decoder: WeightFormat  # all matrices of the decoder but those below
    attention: WeightFormat  # query, key, value and output projections
    down_projection: (
        WeightFormat  # feed-forward to residual stream: its input carries the massive activations
    )
    head: WeightFormat  # hidden state to vocabulary
    audio_encoder: WeightFormat  # attention and feed-forward matrices
    projector: WeightFormat  # from the audio encoder to the decoder's space
    embed_tokens: WeightFormat  # "float", or "channelwise": int8 with a scale per token
    # What its rounding may do to the logits, as `onnx_drift.Drift.logits`; twice what `reference` and `reference-pruned` show.
    drift: float
    # Whether tied embeddings are stored once, in the head; a target that asks for a precision of theirs has them apart.
    tied: bool = True

    def in_blocks(self, block_size: int) -> Recipe:
        """The same, with so many inputs to a scale in the layers' 4-bit matrices. The head keeps its own."""
        parts = {
            part: replace(getattr(self, part), block_size=block_size)
            for part in ("decoder", "attention", "down_projection")
            if getattr(self, part).bits == INT4_BITS
        }
        return replace(self, **parts)


# Formats that recipes and targets name.
FLOAT = WeightFormat("float")
INT8_ROWS = WeightFormat("channelwise", bits=8)
INT8_BLOCKS = WeightFormat("blockwise", bits=8, block_size=64, accuracy_level=4)
INT8_PROJECTOR = WeightFormat("blockwise", bits=8, block_size=128, accuracy_level=4)
# A model that was never trained with rounded weights loses several points of WER to 4 bits in blocks of 32; finer blocks and
# 8 bits for all but gate and up projections keep it, at the speed of int8.
_INT4_BLOCKS = WeightFormat("blockwise", bits=4, block_size=32, accuracy_level=4)
_INT4_FINE = WeightFormat("blockwise", bits=4, block_size=16, accuracy_level=4)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "fp32",
            "everything in float32: what the other recipes start from",
            decoder=FLOAT,
            attention=FLOAT,
            down_projection=FLOAT,
            head=FLOAT,
            audio_encoder=FLOAT,
            projector=FLOAT,
            embed_tokens=FLOAT,
            drift=1e-3,
        ),
        Recipe(
            "int8",
            "8-bit weights, close to float32",
            decoder=INT8_BLOCKS,
            attention=INT8_BLOCKS,
            down_projection=INT8_BLOCKS,
            head=INT8_BLOCKS,
            audio_encoder=INT8_ROWS,
            projector=INT8_PROJECTOR,
            embed_tokens=INT8_ROWS,
            drift=0.2,
        ),
        Recipe(
            "int4",
            "4-bit decoder and head, 8-bit encoder: the smallest and fastest, for models trained with --rounding",
            decoder=_INT4_BLOCKS,
            attention=_INT4_BLOCKS,
            down_projection=_INT4_BLOCKS,
            head=_INT4_BLOCKS,
            audio_encoder=INT8_ROWS,
            projector=_INT4_BLOCKS,
            embed_tokens=INT8_ROWS,
            drift=1.0,
        ),
        Recipe(
            "int4-mixed",
            "4-bit feed-forward in fine blocks, 8-bit attention, down projections, head and encoder: for any other model",
            decoder=_INT4_FINE,
            attention=INT8_BLOCKS,
            down_projection=INT8_BLOCKS,
            head=INT8_BLOCKS,
            audio_encoder=INT8_ROWS,
            projector=INT8_PROJECTOR,
            embed_tokens=INT8_ROWS,
            drift=0.4,
        ),
    )
}
