"""The redundancy maps as a picture: one heat map each, the best block of every size and the cut marked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunella.device_runtime.base.cache import cache_folder
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.files import whole_file
from prunella.pruning.blocks import Block
from prunella.pruning.redundancy import RedundancyMap, agreement

# Before the import, which reads it: its list of fonts belongs in our cache, not elsewhere in HOME.
with contextlib.suppress(UsageError):  # without a home it makes itself a temporary folder
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

matplotlib.use("Agg")
_ALIKE = 0.9  # rank correlation


def draw_maps(
    maps: Mapping[str, RedundancyMap], path: str | Path, model: str, cut: Sequence[Block] = ()
) -> None:
    """Draw maps side by side on one color scale, as PNG or SVG by the name's ending.

    Args:
        maps: by what was put in ("speech", "text").
        path: of the picture.
        model: its name.
        cut: blocks that were cut, marked.
    """
    figure = Figure(figsize=(6.2 * len(maps), 6.0), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    distances = {name: one.distance() for name, one in maps.items()}
    top = max(float(matrix[matrix == matrix].max()) for matrix in distances.values())
    image: Any = None
    for axis, (name, one) in zip(axes, maps.items(), strict=True):
        # Rows are sizes, columns are starts, as in the paper's figure.
        image = axis.imshow(distances[name][:, 1:].T, origin="lower", aspect="auto", cmap="viridis_r", vmin=0, vmax=top,
                            extent=(-0.5, one.num_layers - 0.5, 0.5, one.num_layers + 0.5))  # fmt: skip
        best = one.path()
        axis.plot([block.start for block in best], [len(block) for block in best], "o", color="white",
                  markeredgecolor="black", markersize=4, label="least angle among blocks of this size")  # fmt: skip
        for number, block in enumerate(cut):
            axis.add_patch(
                Rectangle(
                    (block.start - 0.5, len(block) - 0.5), 1, 1, fill=False, edgecolor="crimson", linewidth=2.5,
                    label=f"cut: {', '.join(map(str, cut))}" if number == 0 else None,
                )
            )  # fmt: skip
        axis.set(xlabel="first layer of the block", ylabel="layers in the block", title=f"over {name}")
        axis.legend(loc="upper right", fontsize=8)
    figure.colorbar(image, ax=list(axes), label="angle, in half turns")
    figure.suptitle(f"How far the hidden state turns over each block of decoder layers: {model}")
    figure.supxlabel(_sentence(maps, cut), fontsize=9)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, format=Path(path).suffix.lstrip(".") or "png")


def _sentence(maps: Mapping[str, RedundancyMap], cut: Sequence[Block]) -> str:
    said = ["The lighter a block, the less it changes, and the less is missed when it is cut."]
    if cut:
        said.append("What is cut need not be at the least angle: once bridged, another block may lose less.")
    if {"speech", "text"} <= set(maps):
        alike = agreement(maps["speech"], maps["text"])
        said.append(
            f"Speech and text order the blocks {'alike' if alike.rank_correlation > _ALIKE else 'differently'} "
            f"(rank correlation {alike.rank_correlation:.3f})."
        )
    return "\n".join(said)
