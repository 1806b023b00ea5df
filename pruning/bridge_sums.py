"""Running sums that a bridge is solved from, in memory; `bridge.py` says what it is, `bridge_rows.py` does it on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

import torch
from torch import nn


class Method(Enum):
    """What is fitted, see `bridge.py`."""

    REFIT = "refit"
    MAP = "map"


class BridgeSums:
    """Running sums of one gap in float64: second moments of a (F, F), and of a with the error h - Y - M (F, hidden).

    Args:
        down_projection: of the receiving layer.
        scale: what its output is multiplied by before it is added to Y (Granite: 0.22).
    """

    def __init__(self, down_projection: nn.Linear, scale: float = 1.0) -> None:
        width, hidden = down_projection.in_features, down_projection.out_features
        self.scale = scale
        self.weight = down_projection.weight.detach().double()
        self.moments = torch.zeros(width, width, dtype=torch.float64)
        self.errors = torch.zeros(width, hidden, dtype=torch.float64)

    def add(self, activations: torch.Tensor, output: torch.Tensor, target: torch.Tensor) -> None:
        """Add rows: a (n, F), the receiving layer's output Y + M (n, hidden), and h (n, hidden)."""
        scale = 1.0 / target.double().norm(dim=-1, keepdim=True).clamp_min(1e-9)
        rows = activations.double() * scale
        self.moments += rows.T @ rows
        self.errors += rows.T @ ((target.double() - output.double()) * scale)

    def solve(self, ridge: float, method: Method = Method.REFIT) -> torch.Tensor:
        """The new down projection (hidden, F), float32."""
        if method is Method.REFIT:
            change = _ridge_solve(self.moments, self.errors, ridge).T
        else:
            moments = self.weight @ self.moments @ self.weight.T  # of W a
            change = _ridge_solve(moments, self.weight @ self.errors, ridge).T @ self.weight
        return (self.weight + change / self.scale).float()

    def solutions(self, ridges: Sequence[float], method: Method = Method.REFIT) -> Iterator[torch.Tensor]:
        """`solve` for each ridge."""
        return (self.solve(ridge, method) for ridge in ridges)


def _ridge_solve(moments: torch.Tensor, right: torch.Tensor, ridge: float) -> torch.Tensor:
    size = len(moments)
    damped = moments + ridge * moments.diagonal().mean() * torch.eye(size, dtype=moments.dtype)
    return torch.linalg.solve(damped, right)
