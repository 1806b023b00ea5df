"""Training with the weights that the device will have: what is learned is what works after rounding.

The frozen weight W under a LoRA BA is replaced by Q(W + BA) - BA, with Q the rounding of `quantize.blockwise`. The layer
then computes with Q(W + BA) exactly, while its gradients are those of BA (a straight-through estimate), at no cost in the
forward and backward passes. Q is taken anew every few steps, as BA moves. The head has no LoRA and is rounded once, and a
tied table of token embeddings with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

# As `quantize.blockwise` searches its scales; tests hold the two against each other.
FACTORS = (1.0, 0.94, 0.88, 0.82, 0.76, 1.06)
# `quantize.recipes` stores the head in such blocks, whatever the layers have.
HEAD_BLOCK = 32
_HALF = 8
_AT_ONCE = 1 << 16  # weights, so that all steps of the search stay in a core's cache


def rounded(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    """(outputs, inputs) float32 → the same, rounded to symmetric 4-bit integers with a scale for every `block_size` inputs.

    The last block of an output may have fewer inputs.
    """
    outputs, inputs = weight.shape
    rows = nn.functional.pad(weight, (0, -inputs % block_size)).reshape(-1, block_size)
    parts = [_rounded_rows(part) for part in rows.split(max(1, _AT_ONCE // block_size))]
    return torch.cat(parts).reshape(outputs, -1)[:, :inputs]


def _rounded_rows(rows: torch.Tensor) -> torch.Tensor:
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    best, least = torch.zeros_like(rows), torch.full_like(largest, torch.inf)
    for factor in FACTORS:
        for sign in (1, -1):
            scale = (largest * (-sign * factor / _HALF)).half().float()
            scale = torch.where(scale == 0, 1.0, scale)
            near = (rows / scale).round_().clamp_(-_HALF, _HALF - 1).mul_(scale)
            error = (near - rows).square_().sum(1, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, near, best)
    return best


class RoundedWeights:
    """Keeps frozen weights rounded as they will be, whatever LoRA lies over them.

    Args:
        layers: for each, the frozen parameter in its compute dtype, its exact value (float32), and what gives the LoRA's
            current weight.
        block_size: inputs that share a scale.
    """

    def __init__(
        self,
        layers: Iterable[tuple[torch.nn.Parameter, torch.Tensor, Callable[[], torch.Tensor]]],
        block_size: int,
    ) -> None:
        self._layers, self._block_size = list(layers), block_size

    @torch.no_grad()
    def refresh(self) -> None:
        """Round anew, with the LoRA as it is now."""
        for parameter, exact, added in self._layers:
            delta = added().float()
            parameter.data.copy_(rounded(exact + delta, self._block_size) - delta)
