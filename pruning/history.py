"""What was taken out of a model over all its cuts, in the numbering that it had before the first."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prunella.pruning.blocks import Block, blocks_of
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_facts import ModelFacts, facts_of

if TYPE_CHECKING:
    from prunella.pruning.prune import PruneReport


def pruned_blocks(model: SpeechLLM | ModelFacts) -> tuple[Block, ...]:
    """Blocks that `provenance["pruning"]` says were taken out, of all cuts together, in order."""
    cuts = facts_of(model).provenance.get("pruning", [])
    blocks = [Block.parse(text) for cut in cuts for text in cut.get("blocks", [])]
    return blocks_of(_layers(blocks))


def blocks_between(full: SpeechLLM | ModelFacts, pruned: SpeechLLM | ModelFacts) -> tuple[Block, ...]:
    """Blocks of `full` that were taken out to make `pruned`; none where its provenance does not lead from there to here.

    `full` may have been cut itself: the blocks are in its own numbering.
    """
    before, after = (_layers(pruned_blocks(model)) for model in (full, pruned))
    removed = after - before
    count = facts_of(full).num_layers
    if not before <= after or count - len(removed) != facts_of(pruned).num_layers:
        return ()
    left = [layer for layer in range(count + len(before)) if layer not in before]
    return blocks_of(place for place, layer in enumerate(left) if layer in removed)


def with_cut(model: SpeechLLM, report: PruneReport) -> list[dict[str, Any]]:
    """`provenance["pruning"]` of what `report` says was cut from `model`: its cuts so far, and this one behind them."""
    gone = _layers(pruned_blocks(model))

    def before_the_first(blocks: Iterable[str]) -> list[str]:
        places = _layers(map(Block.parse, blocks))
        left = (layer for layer in itertools.count() if layer not in gone)
        chosen = itertools.islice(left, max(places) + 1)
        return [str(one) for one in blocks_of(layer for place, layer in enumerate(chosen) if place in places)]

    cut: dict[str, Any] = asdict(report) | {"blocks": before_the_first(report.blocks)}
    cut.pop("vocabulary")  # which has a history of its own
    cut["bridges"] = [
        asdict(one) | {"block": " ".join(before_the_first([one.block]))} for one in report.bridges
    ]
    return [*model.config.provenance.get("pruning", []), cut]


def _layers(blocks: Iterable[Block]) -> set[int]:
    return {layer for block in blocks for layer in block.layers}
