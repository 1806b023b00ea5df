"""The picture of the redundancy maps: what was cut is marked, and what it shows is said."""

import numpy as np

from prunella.pruning.blocks import Block
from prunella.pruning.picture import draw_maps
from prunella.pruning.redundancy import RedundancyMap


def _map(seed: int) -> RedundancyMap:
    sums = np.triu(np.random.default_rng(seed).random((7, 7)) * 10, 1)
    return RedundancyMap(6, {"text": sums}, {"text": 20})


def test_the_cut_is_marked_and_the_picture_says_what_it_shows(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    draw_maps({"speech": _map(0)}, tmp_path / "plain.svg", "small")
    draw_maps(
        {"speech": _map(0), "text": _map(1)}, tmp_path / "cut.svg", "small", cut=[Block(1, 3), Block(4, 5)]
    )
    plain, cut = ((tmp_path / f"{name}.svg").read_text() for name in ("plain", "cut"))
    assert "cut: 1:3, 4:5" in cut and cut.count("#dc143c") >= 2 * 2  # crimson, in both maps
    assert "cut:" not in plain and "#dc143c" not in plain
    for words in ("The lighter a block", "small", "least angle among blocks of this size"):
        assert words in plain and words in cut
    assert "Speech and text order the blocks differently" in cut
