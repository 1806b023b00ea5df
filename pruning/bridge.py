"""The bridge: healing a cut in closed form, without training and without new parameters.

Behind the receiving layer the residual stream is Y + M, with M = W a the output of its MLP. The block that was cut used
to turn it into h. ReplaceMe (arXiv 2505.02819) fits a map T with Y + T M ≈ h and folds it into the down projection,
W ← T W. `Method.MAP` is that. `Method.REFIT`, the default, fits the down projection itself, Y + (W + D) a ≈ h: every T
is a special case of it (D = (T - 1) W), and it costs the same at run time. Both come from the same running sums.

Every row is weighted by 1 / ‖h‖ and attention sinks stay in the fit: a map that never saw them destroys them. The ridge
shrinks D towards 0, that is T towards the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.pruning.blocks import Block
from prunella.pruning.calibration import Calibration
from prunella.pruning.surgery import drop_layers, share_weights
from prunella.speech_llm.batches import DecoderBatch, cross_entropy
from prunella.speech_llm.model import decoder_layers

RIDGES = (0.01, 0.1, 1.0)  # shares of the mean diagonal of the activations' second moments
DEFAULT_RIDGE = 0.1


class Method(Enum):
    """What is fitted, see the module's docstring."""

    REFIT = "refit"
    MAP = "map"


@dataclass(frozen=True)
class BridgeReport:
    """What became of one gap. Losses are cross-entropies (nats a token) of the held-out part."""

    block: str
    applied: bool
    loss_before: float
    loss_after: float
    method: str = ""
    ridge: float = 0.0
    reason: str = ""


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


def bridge_blocks(
    full: PreTrainedModel, blocks: Sequence[Block], calibration: Calibration, *, method: Method = Method.REFIT
) -> tuple[PreTrainedModel, list[BridgeReport]]:
    """Cut `blocks` (merged, in order) and bridge every gap, the first gap first.

    The ridge is chosen on the held-out part, and a bridge that does not lower the held-out loss is not applied.
    """
    pruned = drop_layers(full, blocks)
    loss = cross_entropy(pruned, calibration.held_out)
    reports = []
    for index, block in enumerate(blocks):
        reason = why_no_bridge(full, block)
        if reason:
            reports.append(BridgeReport(str(block), False, loss, loss, reason=reason))
            continue
        receiving = block.start - 1 - sum(len(earlier) for earlier in blocks[:index])
        sums = collect_sums(full, pruned if index else full, block, receiving, calibration.fit)
        tried = []
        for ridge in RIDGES:
            candidate = with_down_projection(pruned, receiving, sums.solve(ridge, method))
            tried.append((cross_entropy(candidate, calibration.held_out), ridge, candidate))
        best, ridge, candidate = min(tried, key=lambda one: one[0])
        # Not `>=`: a NaN must not be applied.
        if best < loss:
            reports.append(BridgeReport(str(block), True, loss, best, method.value, ridge))
            pruned, loss = candidate, best
        else:
            reason = f"it would raise the held-out loss from {loss:.3f} to {best:.3f}"
            reports.append(BridgeReport(str(block), False, loss, loss, method.value, ridge, reason))
    return pruned, reports


def why_no_bridge(decoder: PreTrainedModel, block: Block) -> str:
    """Why a block cannot be bridged, or an empty string."""
    if block.start == 0:
        return "the block starts at layer 0: no layer stands before it to carry the bridge"
    layer = decoder_layers(decoder)[block.start - 1]
    if any("post_feedforward" in name or "post_mlp" in name for name, _ in layer.named_children()):
        return f"{decoder.config.model_type} has a norm between the MLP and the residual stream"
    if not isinstance(getattr(getattr(layer, "mlp", None), "down_proj", None), nn.Linear):
        return f"layer {block.start - 1} has no MLP with a plain down projection"
    return ""


@torch.inference_mode()
def collect_sums(
    full: PreTrainedModel,
    student: PreTrainedModel,
    block: Block,
    receiving: int,
    batches: Iterable[DecoderBatch],
) -> BridgeSums:
    """Sums for one gap. Targets come from `full`; the receiving layer is number `receiving` of `student`.

    Give `full` as the student when no layer before the gap was cut: one forward pass then serves both.
    """
    sums = BridgeSums(_down_projection(student, receiving), _residual_scale(full))
    for batch in batches:
        with (
            _recording(full, [block.stop]) as targets,
            _recording(student, [receiving + 1], receiving) as seen,
        ):
            for decoder in dict.fromkeys((full, student)):
                run_until(decoder, batch, block.stop if decoder is full else receiving + 1)
        token = batch.is_token
        sums.add(seen["activations"][token], seen[receiving + 1][token], targets[block.stop][token])
    return sums


@torch.inference_mode()
def collect_candidates(
    full: PreTrainedModel, blocks: Sequence[Block], batches: Iterable[DecoderBatch]
) -> list[BridgeSums]:
    """Sums of several blocks that are alternatives to each other, in one forward pass a batch."""
    sums = [BridgeSums(_down_projection(full, block.start - 1), _residual_scale(full)) for block in blocks]
    last = max(block.stop for block in blocks)
    for batch in batches:
        token = batch.is_token
        states = {block.start for block in blocks} | {block.stop for block in blocks}
        recordings: dict[int, torch.Tensor] = {}
        handles = [
            _down_projection(full, start - 1).register_forward_pre_hook(_keep(recordings, start - 1))
            for start in {block.start for block in blocks}
        ]
        try:
            with _recording(full, sorted(states)) as seen:
                run_until(full, batch, last)
        finally:
            for handle in handles:
                handle.remove()
        for one, block in zip(sums, blocks, strict=True):
            one.add(recordings[block.start - 1][token], seen[block.start][token], seen[block.stop][token])
    return sums


def with_down_projection(decoder: PreTrainedModel, layer: int, weight: torch.Tensor) -> PreTrainedModel:
    """A copy of `decoder` (weights shared) whose layer has another down projection (hidden, F)."""
    changed = share_weights(decoder)
    _down_projection(changed, layer).weight = nn.Parameter(weight, requires_grad=False)
    return changed


class _Reached(Exception):
    """The forward pass got as far as it is needed."""


def run_until(decoder: PreTrainedModel, batch: DecoderBatch, state: int) -> None:
    """Run the decoder up to its hidden state number `state` (before layer `state`), no further."""
    layers = decoder_layers(decoder)

    def stop(*_: Any) -> None:
        raise _Reached

    handle = layers[state].register_forward_pre_hook(stop) if state < len(layers) else None
    try:
        decoder.base_model(
            inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, use_cache=False
        )
    except _Reached:
        pass
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def _recording(
    decoder: PreTrainedModel, states: Sequence[int], activations_of: int | None = None
) -> Iterator[dict[Any, torch.Tensor]]:
    """Keep the hidden states before the given layers (from the output of the layer before), and a layer's a."""
    layers = decoder_layers(decoder)
    seen: dict[Any, torch.Tensor] = {}

    def keep_output(state: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            seen[state] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layers[state - 1].register_forward_hook(keep_output(state)) for state in states]
    if activations_of is not None:
        down = _down_projection(decoder, activations_of)
        handles.append(down.register_forward_pre_hook(_keep(seen, "activations")))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keep(seen: dict[Any, torch.Tensor], key: Any) -> Any:
    def hook(_module: Any, args: tuple[Any, ...]) -> None:
        seen[key] = args[0]

    return hook


def _down_projection(decoder: PreTrainedModel, layer: int) -> nn.Linear:
    found: Any = decoder_layers(decoder)[layer]
    return found.mlp.down_proj


def _residual_scale(decoder: PreTrainedModel) -> float:
    scale: Any = getattr(decoder.config.get_text_config(), "residual_multiplier", None)
    return float(scale) if scale else 1.0


def _ridge_solve(moments: torch.Tensor, right: torch.Tensor, ridge: float) -> torch.Tensor:
    size = len(moments)
    damped = moments + ridge * moments.diagonal().mean() * torch.eye(size, dtype=moments.dtype)
    return torch.linalg.solve(damped, right)
