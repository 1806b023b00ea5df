"""The redundancy maps as a picture: one heat map each, the best block of every size marked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunella.device_runtime.base.cache import cache_folder
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.files import whole_file
from prunella.pruning.redundancy import RedundancyMap, agreement

# Before the import, which reads it: its list of fonts belongs in our cache, not elsewhere in HOME.
with contextlib.suppress(UsageError):  # without a home it makes itself a temporary folder
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("Agg")


def draw_maps(maps: Mapping[str, RedundancyMap], path: str | Path, title: str) -> None:
    """Draw maps side by side on one colour scale, as PNG or SVG by the name's ending."""
    figure = Figure(figsize=(6.2 * len(maps), 5.6), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    distances = {name: one.distance() for name, one in maps.items()}
    top = max(float(matrix[matrix == matrix].max()) for matrix in distances.values())
    image: Any = None
    for axis, (name, one) in zip(axes, maps.items(), strict=True):
        # Rows are sizes, columns are starts, as in the paper's figure.
        image = axis.imshow(distances[name][:, 1:].T, origin="lower", aspect="auto", cmap="viridis_r", vmin=0, vmax=top,
                            extent=(-0.5, one.num_layers - 0.5, 0.5, one.num_layers + 0.5))  # fmt: skip
        path_blocks = one.path()
        axis.plot(
            [block.start for block in path_blocks],
            [len(block) for block in path_blocks],
            "o-", color="white", markeredgecolor="black", markersize=4, linewidth=1,
            label="least distance of each size",
        )  # fmt: skip
        positions = ", ".join(f"{count:,} {kind}" for kind, count in one.counts.items() if count)
        axis.set(
            xlabel="first layer of the block",
            ylabel="layers in the block",
            title=f"{name}: {positions} positions",
        )
        axis.legend(loc="upper right", fontsize=8)
    figure.colorbar(image, ax=list(axes), label="angular distance (0: same direction)")
    if {"speech", "text"} <= set(maps):
        alike = agreement(maps["speech"], maps["text"])
        title += f"\nspeech and text: rank correlation {alike.rank_correlation:.3f}, overlap of the best blocks {alike.mean_overlap:.2f}"
    figure.suptitle(title)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, format=Path(path).suffix.lstrip(".") or "png")
