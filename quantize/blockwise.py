"""Symmetric integers in blocks: the weights of onnxruntime's MatMulNBits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# At 4 bits, clipping a block's largest weight a little costs less than a coarser step for all others. The sign
# decides which side gets the eighth negative step.
_FACTORS_4_BIT = tuple(sign * factor for factor in (1.0, 0.94, 0.88, 0.82, 0.76, 1.06) for sign in (1, -1))
_BLOCKS_AT_ONCE = 1 << 15


def quantize_blocks(
    matrix: npt.NDArray[np.float32], bits: int, block_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Store (inputs, outputs) as integers of 4 or 8 bits with a scale for every `block_size` inputs of an output.

    Returns:
        packed: (outputs, blocks, block_size * bits / 8) uint8, offset by 2**(bits - 1), the lower nibble first.
        scales: (outputs, blocks) float32, of either sign, each a value that float16 has; the last block is filled up with zeros.

    Raises:
        ValueError: other than 4 or 8 bits.
    """
    if bits not in (4, 8):
        raise ValueError(f"4 or 8 bits, not {bits}")
    inputs, outputs = matrix.shape
    blocks = -(-inputs // block_size)
    rows = np.zeros((outputs, blocks * block_size), np.float32)
    rows[:, :inputs] = matrix.T
    rows = rows.reshape(-1, block_size)
    integers = np.empty(rows.shape, np.uint8)
    scales = np.empty(len(rows), np.float32)
    for at in range(0, len(rows), _BLOCKS_AT_ONCE):
        part = slice(at, at + _BLOCKS_AT_ONCE)
        scales[part], integers[part] = _nearest(rows[part], bits)
    packed: npt.NDArray[np.uint8] = integers.reshape(outputs, blocks, block_size)
    if bits == 4:
        packed = np.bitwise_or(packed[..., 0::2], packed[..., 1::2] << 4, dtype=np.uint8)
    return packed, scales.reshape(outputs, blocks)


def _nearest(
    rows: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Scale of each row with the least squared error, and the offset integers."""
    half = 2 ** (bits - 1)
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    best_scale = np.ones_like(largest)
    best = np.zeros(rows.shape, np.float32)
    least = np.full(len(rows), np.inf, np.float32)
    for factor in _FACTORS_4_BIT if bits == 4 else (1.0,):
        with np.errstate(over="ignore"):
            scale = (largest * np.float32(-factor / half)).astype(np.float16).astype(np.float32)
        scale[scale == 0] = 1
        integers = np.clip(np.rint(rows / scale), -half, half - 1)
        error = np.square(integers * scale - rows).sum(axis=1)
        better = error < least
        least[better], best_scale[better], best[better] = error[better], scale[better], integers[better]
    return best_scale[:, 0], (best + half).astype(np.uint8)
