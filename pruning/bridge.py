"""The bridge: healing a cut in closed form, without training and without new parameters.

Behind the receiving layer the residual stream is Y + M, with M = W a the output of its MLP. The block that was cut used
to turn it into h. ReplaceMe (arXiv 2505.02819) fits a map T with Y + T M ≈ h and folds it into the down projection,
W ← T W. `Method.MAP` is that. `Method.REFIT`, the default, fits the down projection itself, Y + (W + D) a ≈ h: every T
is a special case of it (D = (T - 1) W), and it costs the same at run time. Both come from the same running sums.

Every row is weighted by 1 / ‖h‖ and attention sinks stay in the fit: a map that never saw them destroys them. The ridge
shrinks D towards 0, that is T towards the identity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError
from prunella.pruning.blocks import Block
from prunella.pruning.bridge_rows import BridgeRows, StoredProjection
from prunella.pruning.bridge_sums import BridgeSums as BridgeSums
from prunella.pruning.bridge_sums import Method as Method
from prunella.pruning.calibration import Calibration
from prunella.pruning.surgery import drop_layers, share_weights
from prunella.speech_llm.batches import DecoderBatch, cross_entropies, cross_entropy
from prunella.speech_llm.decoder_view import DecoderView, decoder_view
from prunella.speech_llm.streaming import in_groups, layer_by_layer, stream_of

RIDGES = (0.01, 0.1, 1.0)  # shares of the mean diagonal of the activations' second moments
DEFAULT_RIDGE = 0.1
_WIDER = 4  # times that activations are wider than hidden states, about


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


def bridge_blocks(
    full: PreTrainedModel,
    blocks: Sequence[Block],
    calibration: Calibration,
    *,
    method: Method = Method.REFIT,
    loss: float | None = None,
) -> tuple[PreTrainedModel, list[BridgeReport]]:
    """Cut `blocks` (merged, in order) and bridge every gap, the first gap first.

    The ridge is chosen on the held-out part, and a bridge that does not lower the held-out loss (`loss`, where it was
    measured before) is not applied.
    """
    pruned = drop_layers(full, blocks)
    loss = cross_entropy(pruned, calibration.held_out) if loss is None else loss
    reports = []
    for index, block in enumerate(blocks):
        reason = why_no_bridge(full, block)
        if reason:
            reports.append(BridgeReport(str(block), False, loss, loss, reason=reason))
            continue
        receiving = block.start - 1 - sum(len(earlier) for earlier in blocks[:index])
        sums = collect_sums(full, pruned if index else full, block, receiving, calibration.fit)
        candidates = [
            with_down_projection(pruned, receiving, weight) for weight in sums.solutions(RIDGES, method)
        ]
        losses = cross_entropies(candidates, calibration.held_out)
        best, ridge, candidate = min(zip(losses, RIDGES, candidates, strict=True), key=lambda one: one[0])
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
    view = decoder_view(decoder)
    if view.has_norm_behind_mlp(block.start - 1):
        return f"{decoder.config.model_type} has a norm between the MLP and the residual stream"
    try:
        view.down_projection(block.start - 1)
    except CheckpointError as error:
        return str(error)
    return ""


@torch.inference_mode()
def collect_sums(
    full: PreTrainedModel,
    student: PreTrainedModel,
    block: Block,
    receiving: int,
    batches: Iterable[DecoderBatch],
) -> BridgeSums | BridgeRows:
    """Sums for one gap. Targets come from `full`; the receiving layer is number `receiving` of `student`.

    Give `full` as the student when no layer before the gap was cut: one forward pass then serves both.
    """
    sums = _empty_sums(decoder_view(student), receiving)
    one_pass = student is full
    for group in _groups(full, batches, states=2 + _WIDER):
        heard = {receiving + 1, block.stop} if one_pass else {receiving + 1}
        seen = _watched(student, group, heard, [receiving])
        wanted = seen if one_pass else _watched(full, group, {block.stop})
        for batch, own, other in zip(group, seen, wanted, strict=True):
            token = batch.is_token
            sums.add(
                own.activations[receiving][token],
                own.states[receiving + 1][token],
                other.states[block.stop][token],
            )
    return sums


@torch.inference_mode()
def collect_candidates(
    full: PreTrainedModel, blocks: Sequence[Block], batches: Iterable[DecoderBatch]
) -> list[BridgeSums | BridgeRows]:
    """Sums of several blocks that are alternatives to each other, in one forward pass a batch."""
    view = decoder_view(full)
    sums = [_empty_sums(view, block.start - 1) for block in blocks]
    starts, stops = ({getattr(block, end) for block in blocks} for end in ("start", "stop"))
    states, receiving = starts | stops, {start - 1 for start in starts}
    for group in _groups(full, batches, states=len(states) + _WIDER * len(receiving)):
        for batch, seen in zip(group, _watched(full, group, states, receiving), strict=True):
            token = batch.is_token
            for one, block in zip(sums, blocks, strict=True):
                one.add(
                    seen.activations[block.start - 1][token],
                    seen.states[block.start][token],
                    seen.states[block.stop][token],
                )
    return sums


def with_down_projection(decoder: PreTrainedModel, layer: int, weight: torch.Tensor) -> PreTrainedModel:
    """A copy of `decoder` (weights shared) whose layer has another down projection (hidden, F).

    Where the decoder stays on disk, it is rounded to the dtype there, in which it will be saved.
    """
    changed = share_weights(decoder)
    view = decoder_view(changed)
    if stream_of(decoder) is not None:
        weight = weight.to(_stored_projection(view, layer).dtype).float()
    view.down_projection(layer).weight = nn.Parameter(weight, requires_grad=False)
    return changed


def _stored_projection(view: DecoderView, layer: int) -> StoredProjection:
    stream = stream_of(view.decoder)
    assert stream is not None
    return StoredProjection(stream, view.layers[layer], view.down_projection(layer))


def _empty_sums(view: DecoderView, receiving: int) -> BridgeSums | BridgeRows:
    if stream_of(view.decoder) is not None:
        return BridgeRows(_stored_projection(view, receiving), view.residual_scale)
    return BridgeSums(view.down_projection(receiving), view.residual_scale)


@dataclass(frozen=True)
class _Seen:
    """Of the last pass, by number: hidden states (before a layer) and what down projections got."""

    states: dict[int, torch.Tensor] = field(default_factory=dict)
    activations: dict[int, torch.Tensor] = field(default_factory=dict)


@contextmanager
def _recording(view: DecoderView, states: Iterable[int], activations: Iterable[int] = ()) -> Iterator[_Seen]:
    seen = _Seen()
    with ExitStack() as stack:
        for state in states:
            stack.callback(view.watch_output(state - 1, partial(seen.states.__setitem__, state)).remove)
        for layer in activations:
            keep = partial(seen.activations.__setitem__, layer)
            stack.callback(view.watch_activations(layer, keep).remove)
        yield seen


def _groups(
    decoder: PreTrainedModel, batches: Iterable[DecoderBatch], *, states: int
) -> Iterator[list[DecoderBatch]]:
    """Batches that go through a decoder together: of one in memory each for itself."""
    return in_groups(batches, states) if stream_of(decoder) is not None else ([batch] for batch in batches)


def _watched(
    decoder: PreTrainedModel,
    group: Sequence[DecoderBatch],
    states: Collection[int],
    activations: Collection[int] = (),
) -> list[_Seen]:
    """What is to be recorded, of every batch of a group."""
    view = decoder_view(decoder)
    found = []
    if stream_of(decoder) is None:
        for batch in group:
            with _recording(view, states, activations) as seen:
                view.run_until(max(states), batch.inputs_embeds, batch.attention_mask)
            found.append(seen)
        return found
    found = [_Seen() for _ in group]
    with _recording(view, (), activations) as last:
        for state, index, hidden in layer_by_layer(decoder, group, max(states)):
            if state in states:
                found[index].states[state] = hidden
            if state - 1 in last.activations:
                found[index].activations[state - 1] = last.activations.pop(state - 1)
    return found
