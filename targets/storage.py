"""How the parts of a model are stored: bits and kernel of each, as recipes (`quantize/storage.py`) or a bundle's graphs say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """Of matrices.

    Attributes:
        kernel: that multiplies with them, by its name in `Compute.rates`.
        bits: of a weight.
        block: weights that share a scale of `scale_bits`; rows are filled up to whole blocks. 0: none.
        scale_bits: see `block`.
    """

    kernel: str
    bits: float
    block: int = 0
    scale_bits: int = 32

    def stored(self, inputs: float, outputs: float) -> float:
        """Bytes of a matrix."""
        if not self.block:
            return inputs * outputs * self.bits / 8
        blocks = -(-inputs // self.block)
        return outputs * blocks * (self.block * self.bits + self.scale_bits) / 8


FLOAT32 = Format("float32", 32)


@dataclass(frozen=True)
class Storage:
    """Of a whole model.

    Attributes:
        name: of the recipe.
        engine: of the decoder: "onnx" or "gguf".
        attention: query, key, value and output projections.
        gate_up: gate and up projections.
        down: down projections.
        head: hidden state to vocabulary.
        encoder: matrices of the audio encoder's layers.
        embeddings: of tokens.
        shared: whether the embeddings are the head, stored once where they are tied.
        projector: matrices between encoder and decoder.
    """

    name: str
    engine: str
    attention: Format
    gate_up: Format
    down: Format
    head: Format
    encoder: Format
    embeddings: Format
    shared: bool = False
    projector: Format = FLOAT32
