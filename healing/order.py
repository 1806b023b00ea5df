"""Which clips make up which step: a pure function of the seed and the lengths, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]

_POOL_STEPS = 24  # clips of so many steps are sorted by length together: little padding, still well mixed


def epoch_steps(
    lengths: Lengths,
    batch_positions: int,
    micro_positions: int,
    seed: int,
    epoch: int,
    *,
    sorted_order: bool = False,
) -> list[list[int]]:
    """Every clip once, in steps of about `batch_positions` decoder positions.

    Args:
        lengths: (n,) decoder positions of each clip.
        batch_positions: positions of one step.
        micro_positions: positions of one forward pass, which decides what is grouped by length.
        seed: of the run.
        epoch: its number.
        sorted_order: steps from short to long (a curriculum) instead of shuffled.
    """
    rng = np.random.default_rng((seed, epoch, 4))
    shuffled = rng.permutation(len(lengths))
    micro = min(micro_positions, batch_positions)
    groups: list[list[int]] = []
    for pool in _pools(shuffled, lengths, _POOL_STEPS * batch_positions):
        packed = pack(sorted(pool, key=lambda index: int(lengths[index])), lengths, micro)
        groups += [packed[place] for place in rng.permutation(len(packed))]
    if sorted_order:
        groups.sort(key=lambda group: int(lengths[group].max()))
    steps: list[list[int]] = []
    filled = batch_positions
    for group in groups:
        size = int(lengths[group].sum())
        if filled + size > batch_positions:
            steps.append([])
            filled = 0
        steps[-1] += group
        filled += size
    return steps


def pack(ordered: Sequence[int], lengths: Lengths, positions: int) -> list[list[int]]:
    """Consecutive groups of `ordered` (by length) that take at most `positions` when padded; a longer clip is alone."""
    groups: list[list[int]] = []
    longest = 0
    for index in ordered:
        longest = max(longest, int(lengths[index]))
        if not groups or (len(groups[-1]) + 1) * longest > positions:
            groups.append([])
            longest = int(lengths[index])
        groups[-1].append(index)
    return groups


def split_step(
    step: Sequence[int], lengths: Lengths, micro_positions: int, processes: int
) -> list[list[list[int]]]:
    """[process][forward pass] → clips; all processes get the same number of passes, the last may be empty."""
    ordered = sorted(step, key=lambda index: (int(lengths[index]), index))
    groups = pack(ordered, lengths, micro_positions)
    count = -(-len(groups) // processes) * processes
    if count != len(groups):
        groups = _even(ordered, lengths, count)
    return [groups[process::processes] for process in range(processes)]


def _even(ordered: Sequence[int], lengths: Lengths, count: int) -> list[list[int]]:
    """Cut into `count` groups of about equal positions."""
    ends = np.cumsum(lengths[list(ordered)])
    middles = ends - lengths[list(ordered)] / 2
    places = np.minimum((middles * count / ends[-1]).astype(int), count - 1)
    return [
        [index for index, place in zip(ordered, places, strict=True) if place == group]
        for group in range(count)
    ]


def _pools(shuffled: npt.NDArray[np.int64], lengths: Lengths, positions: int) -> list[list[int]]:
    pools = np.cumsum(lengths[shuffled]) // positions
    return [[int(index) for index in shuffled[pools == pool]] for pool in np.unique(pools)]
