"""The redundancy map: how far the hidden state turns across every block of decoder layers.

Angular distance d(l, n) = arccos(cos(h_l, h_{l+n})) / pi of Gromov et al. (arXiv 2403.17887), measured on speech as in
"Measuring the Redundancy of Decoder Layers in SpeechLLMs" (arXiv 2603.05121), kept apart per position class.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError, UsageError
from prunella.device_runtime.base.files import write_json
from prunella.pruning.blocks import Block
from prunella.speech_llm.batches import DecoderBatch, PositionClass
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.streaming import in_groups, layer_by_layer, stream_of

# What is averaged over unless somebody asks for other positions: of a clip of 4 s in a window of 30 s, silence would be
# seven eighths of it, and a block that does nothing in silence may do much in speech.
CLASSES = tuple(kind.name.lower() for kind in PositionClass if kind is not PositionClass.SILENCE)
_POSITIONS_AT_ONCE = 512  # bounds the memory of the pairwise cosines, whatever the batch


@dataclass(frozen=True)
class RedundancyMap:
    """Sums of angular distances and counts of positions, so that any average can be derived later.

    sums: position class → (L + 1, L + 1) float64, entry [l, m] the summed distance between the hidden states before
    layer l and before layer m (m = L: after the last layer, before the final norm); zero unless l < m.
    counts: position class → number of positions summed. "silence" is among the classes where a family's windows have some.
    """

    num_layers: int
    sums: dict[str, npt.NDArray[np.float64]]
    counts: dict[str, int]

    def distance(self, classes: Sequence[str] = CLASSES) -> npt.NDArray[np.float64]:
        """(L, L + 1) mean distance d[l, n] of the block of n layers that starts at l; NaN where there is none.

        Args:
            classes: position classes to average over, every position weighing the same.

        Raises:
            UsageError: nothing was measured at those positions.
        """
        count = sum(self.counts.get(name, 0) for name in classes)
        if not count:
            raise UsageError(
                f"no position of class {', '.join(classes)} was measured: there are {self.counts}"
            )
        mean = np.sum([self.sums[name] for name in classes if name in self.sums], axis=0) / count
        result = np.full((self.num_layers, self.num_layers + 1), np.nan)
        for start in range(self.num_layers):
            for stop in range(start + 1, self.num_layers + 1):
                result[start, stop - start] = mean[start, stop]
        return result

    def ranked(self, size: int, classes: Sequence[str] = CLASSES) -> list[tuple[Block, float]]:
        """All blocks of `size` layers with their distance, the least distance first."""
        column = self.distance(classes)[:, size]
        order = np.argsort(column[: self.num_layers - size + 1], kind="stable")
        return [(Block(int(start), int(start) + size), float(column[start])) for start in order]

    def path(self, classes: Sequence[str] = CLASSES) -> list[Block]:
        """The pruning path: the best block of every size from 1 to L - 1."""
        return [self.ranked(size, classes)[0][0] for size in range(1, self.num_layers)]

    def block_influence(self, classes: Sequence[str] = CLASSES) -> npt.NDArray[np.float64]:
        """(L,) distance across every single layer: how much each one turns the hidden state."""
        return self.distance(classes)[:, 1]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back."""
        return {
            "num_layers": self.num_layers,
            "counts": self.counts,
            "sums": {name: matrix.tolist() for name, matrix in self.sums.items()},
        }

    @staticmethod
    def from_json(body: dict[str, Any]) -> RedundancyMap:
        sums = {name: np.asarray(matrix, dtype=np.float64) for name, matrix in body["sums"].items()}
        return RedundancyMap(body["num_layers"], sums, dict(body["counts"]))


@dataclass(frozen=True)
class Agreement:
    """How alike two maps are: rank correlation over all blocks, and overlap of the best blocks (0 to 1, by size)."""

    rank_correlation: float
    overlap: tuple[float, ...]

    @property
    def mean_overlap(self) -> float:
        return float(np.mean(self.overlap))


def agreement(one: RedundancyMap, other: RedundancyMap) -> Agreement:
    """Spearman's correlation of the distances, and for every size the intersection over union of the best blocks."""
    first, second = one.distance(), other.distance()
    measured = np.isfinite(first)
    correlation = float(spearmanr(first[measured], second[measured]).statistic)
    overlap = []
    for a, b in zip(one.path(), other.path(), strict=True):
        shared = len(set(a.layers) & set(b.layers))
        overlap.append(shared / (len(a) + len(b) - shared))
    return Agreement(correlation, tuple(overlap))


class RedundancyMeter:
    """Running sums for a `RedundancyMap`; its memory does not grow with the number of positions."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self._starts, self._stops = torch.triu_indices(num_layers + 1, num_layers + 1, offset=1)
        names = [kind.name.lower() for kind in PositionClass]
        self._sums = {name: torch.zeros(len(self._starts), dtype=torch.float64) for name in names}
        self._counts = dict.fromkeys(names, 0)

    def add(self, states: Sequence[torch.Tensor], position_class: torch.Tensor) -> None:
        """Add one batch.

        Args:
            states: L + 1 hidden states (batch, length, hidden).
            position_class: (batch, length), -1 at padding.
        """
        for kind in PositionClass:
            chosen = position_class == kind
            count = int(chosen.sum())
            self._counts[kind.name.lower()] += count
            if not count:
                continue
            rows = torch.stack(
                [state[chosen] for state in states], dim=1
            ).float()  # (positions, L + 1, hidden)
            for part in rows.split(_POSITIONS_AT_ONCE):
                unit = torch.nn.functional.normalize(part, dim=-1, eps=1e-12)
                cosine = torch.bmm(unit, unit.transpose(1, 2))[:, self._starts, self._stops]
                # Rounding can push a cosine past 1, where arccos is NaN.
                angle = torch.arccos(cosine.clamp_(-1.0, 1.0)) / torch.pi
                self._sums[kind.name.lower()] += angle.sum(dim=0, dtype=torch.float64)

    def result(self) -> RedundancyMap:
        """The map of all that was added."""
        size = self.num_layers + 1
        sums = {}
        counts = {name: count for name, count in self._counts.items() if count or name in CLASSES}
        for name in counts:
            matrix = np.zeros((size, size))
            matrix[self._starts.numpy(), self._stops.numpy()] = self._sums[name].numpy()
            sums[name] = matrix
        return RedundancyMap(self.num_layers, sums, counts)


@contextmanager
def hidden_states(decoder: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """While open, every forward fills the list with the L + 1 states between the layers.

    Hugging Face's own `hidden_states[-1]` is taken after the final norm; the last state here is before it.
    """
    view = decoder_view(decoder)
    states: list[torch.Tensor] = []

    def begin(first: torch.Tensor) -> None:
        states[:] = [first]

    handles = [view.watch_input(0, begin)]
    handles += [view.watch_output(layer, states.append) for layer in range(len(view))]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def measure_redundancy(decoder: PreTrainedModel, batches: Iterable[DecoderBatch]) -> RedundancyMap:
    """The redundancy map of a decoder, in one forward pass a batch.

    Raises:
        UsageError: no batch.
        CheckpointError: the decoder yields NaN.
    """
    view = decoder_view(decoder)
    meter = RedundancyMeter(len(view))
    if stream_of(decoder) is not None:
        for group in in_groups(batches, states=len(view) + 1):
            found: list[list[torch.Tensor]] = [[] for _ in group]
            for _, index, state in layer_by_layer(decoder, group, len(view)):
                found[index].append(state)
            for batch, own in zip(group, found, strict=True):
                meter.add(own, batch.position_class)
    else:
        with hidden_states(decoder) as states:
            for batch in batches:
                view.run(batch.inputs_embeds, batch.attention_mask)
                meter.add(states, batch.position_class)
    result = meter.result()
    if not sum(result.counts.values()):
        raise UsageError("nothing to measure: the calibration data is empty")
    if not all(np.isfinite(matrix).all() for matrix in result.sums.values()):
        raise CheckpointError(
            "the decoder yields NaN: its weights are broken, load it in float32 and look at them"
        )
    return result


def save_maps(maps: dict[str, RedundancyMap], path: str | Path, **facts: Any) -> None:
    """Write maps by name ("speech", "text") and `facts` about them as `redundancy.json`."""
    write_json(path, {**facts, "maps": {name: one.to_json() for name, one in maps.items()}})


def is_map(path: str | Path) -> bool:
    """Whether `load_maps` would read it."""
    with contextlib.suppress(UsageError):
        load_maps(path)
        return True
    return False


def load_maps(path: str | Path) -> dict[str, RedundancyMap]:
    """Read the maps of a `redundancy.json`.

    Raises:
        UsageError: not such a file.
    """
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: RedundancyMap.from_json(one) for name, one in body["maps"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path} is no redundancy map ({error}): `prunella analyze MODEL -o DIR` makes one"
        ) from error
