"""Which layers to cut: strategies from a redundancy map alone, and those that measure the loss on calibration speech."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError, PrunellaError, UsageError
from prunella.pruning.blocks import Block, blocks_of
from prunella.pruning.bridge import (
    DEFAULT_RIDGE,
    collect_candidates,
    why_no_bridge,
    with_down_projection,
)
from prunella.pruning.calibration import Calibration
from prunella.pruning.redundancy import RedundancyMap, measure_redundancy
from prunella.pruning.surgery import drop_layers
from prunella.speech_llm.batches import cross_entropies
from prunella.speech_llm.decoder_view import decoder_view

CANDIDATES = 6  # blocks of the least angle that `bridged` tries


@dataclass(frozen=True)
class Evidence:
    """What a strategy may look at. A strategy that needs more than there is says so; the map is measured where there is calibration."""

    decoder: PreTrainedModel
    redundancy: RedundancyMap | None = None
    calibration: Calibration | None = None


def angular(evidence: Evidence, size: int) -> tuple[Block, ...]:
    """The contiguous block of the least angular distance (arXiv 2603.05121)."""
    return (next(_ranked(evidence, size, "angular")),)


def bridged(evidence: Evidence, size: int) -> tuple[Block, ...]:
    """Of the blocks of least angle the one with the lowest held-out loss after its bridge."""
    calibration = _calibration(evidence, "bridged")
    decoder = evidence.decoder
    bridgeable = (block for block in _ranked(evidence, size, "bridged") if not why_no_bridge(decoder, block))
    blocks = list(islice(bridgeable, CANDIDATES))
    if not blocks:
        return (next(_ranked(evidence, size, "bridged")),)
    sums = collect_candidates(decoder, blocks, calibration.fit)
    pruned = [
        with_down_projection(drop_layers(decoder, [block]), block.start - 1, one.solve(DEFAULT_RIDGE))
        for block, one in zip(blocks, sums, strict=True)
    ]
    losses = cross_entropies(pruned, calibration.held_out)
    return (blocks[int(np.argmin(losses))],)


def block_influence(evidence: Evidence, size: int) -> tuple[Block, ...]:
    """The layers that turn the hidden state least, each for itself, contiguous or not (ShortGPT, arXiv 2403.03853)."""
    influence = _map(evidence, "block-influence").block_influence()
    return blocks_of(int(layer) for layer in np.argsort(influence, kind="stable")[:size])


def deepest(evidence: Evidence, size: int) -> tuple[Block, ...]:
    """The control of Gromov et al. (arXiv 2403.17887): the deepest layers, but keep the last."""
    last = len(decoder_view(evidence.decoder)) - 1
    if size > last:
        raise UsageError(f"'deepest' keeps the last layer: it can drop at most {last}")
    return (Block(last - size, last),)


def greedy(evidence: Evidence, size: int) -> tuple[Block, ...]:
    """One layer at a time, the one whose loss hurts least on the calibration speech, measured anew after each."""
    calibration = _calibration(evidence, "greedy")
    count = len(decoder_view(evidence.decoder))
    removed: set[int] = set()
    with tqdm(total=sum(count - i for i in range(size)), desc="greedy", file=sys.stderr, disable=None) as bar:
        for _ in range(size):
            left = sorted(set(range(count)) - removed)
            pruned = [drop_layers(evidence.decoder, blocks_of([*removed, layer])) for layer in left]
            losses = cross_entropies(pruned, calibration.held_out, bar.update)
            removed.add(left[int(np.argmin(losses))])
    return blocks_of(removed)


STRATEGIES: dict[str, Callable[[Evidence, int], tuple[Block, ...]]] = {
    "bridged": bridged,
    "angular": angular,
    "block-influence": block_influence,
    "deepest": deepest,
    "greedy": greedy,
}


def choose_blocks(evidence: Evidence, size: int, strategy: str = "bridged") -> tuple[Block, ...]:
    """The blocks that `strategy` cuts to take `size` layers away.

    Raises:
        UsageError: no such strategy, too many layers, or evidence that the strategy needs is not there.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"no strategy '{strategy}': choose one of {', '.join(STRATEGIES)}")
    count = len(decoder_view(evidence.decoder))
    if not 0 < size < count:
        raise UsageError(f"cannot drop {size} of {count} layers: drop 1 to {count - 1}")
    return STRATEGIES[strategy](evidence, size)


def _ranked(evidence: Evidence, size: int, strategy: str) -> Iterator[Block]:
    """Blocks by their angle, without those that cannot be cut (SmolLM3's pattern)."""
    refused: PrunellaError | None = None
    found = False
    for block, _ in _map(evidence, strategy).ranked(size):
        try:
            drop_layers(evidence.decoder, [block])
        except (UsageError, CheckpointError) as error:
            refused = refused or error
            continue
        found = True
        yield block
    if not found and refused is not None:
        raise refused


def _map(evidence: Evidence, strategy: str) -> RedundancyMap:
    if evidence.redundancy is not None:
        return evidence.redundancy
    if evidence.calibration is not None:
        return measure_redundancy(evidence.decoder, evidence.calibration.fit)
    raise UsageError(
        f"the strategy '{strategy}' chooses by a redundancy map: give --speech to measure it (--text for a text LLM) or "
        "--map, or name the layers with --block"
    )


def _calibration(evidence: Evidence, strategy: str) -> Calibration:
    if evidence.calibration is None:
        raise UsageError(f"'{strategy}' needs calibration data: give --speech (or --text for a text LLM)")
    return evidence.calibration
