"""One way to name decoder layers: 0-based, half-open ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from prunella.device_runtime.base.errors import UsageError


@dataclass(frozen=True, order=True)
class Block:
    """Decoder layers `start`, ..., `stop - 1`.

    >>> str(Block(14, 23)), len(Block(14, 23))
    ('14:23', 9)
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise UsageError(
                f"no block {self.start}:{self.stop}: write START:STOP, 0-based, STOP not included (14:23 is 9 layers)"
            )

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    @property
    def layers(self) -> range:
        return range(self.start, self.stop)

    @staticmethod
    def parse(text: str) -> Block:
        """Inverse of `str`.

        Raises:
            UsageError: not START:STOP.
        """
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        if not match:
            raise UsageError(
                f"no block '{text}': write START:STOP, 0-based, STOP not included (14:23 is 9 layers)"
            )
        return Block(int(match[1]), int(match[2]))


def blocks_of(layers: Iterable[int]) -> tuple[Block, ...]:
    """Contiguous blocks that cover exactly `layers`, in order.

    >>> [str(block) for block in blocks_of([7, 3, 4])]
    ['3:5', '7:8']
    """
    blocks: list[Block] = []
    for layer in sorted(set(layers)):
        if blocks and blocks[-1].stop == layer:
            blocks[-1] = Block(blocks[-1].start, layer + 1)
        else:
            blocks.append(Block(layer, layer + 1))
    return tuple(blocks)


def check_blocks(blocks: Iterable[Block], num_layers: int) -> tuple[Block, ...]:
    """The blocks merged and in order.

    Raises:
        UsageError: none, one that reaches past the last layer, or all layers.
    """
    layers = {layer for block in blocks for layer in block.layers}
    if not layers:
        raise UsageError("nothing to prune: give --drop N, --keep SHARE or --block START:STOP")
    if max(layers) >= num_layers:
        raise UsageError(
            f"no layer {max(layers)}: the decoder has {num_layers} layers, numbered 0 to {num_layers - 1}"
        )
    if len(layers) >= num_layers:
        raise UsageError(f"cannot prune all {num_layers} layers: keep at least one")
    return blocks_of(layers)
