"""Pictures of the house: which room imports which, and two walks through it, as they are run.

    python research/house/draw.py BUNDLE -o docs/house

The walks are recorded, not drawn by hand: every call that is given the audio (or what became of it), or the model, in its
order. A walk names each file once, where it comes in for the first time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import grimp
import matplotlib
import numpy as np
import tomllib

from prunella.device_runtime import load_audio, open_transcriber

matplotlib.use("svg")
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "prunella"  # the same picture for the same house

from matplotlib import pyplot as plt  # noqa: E402

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples" / "clips" / "evaluation" / "goforward.flac"
# Floors from the ground up, as the import contracts of pyproject.toml have them.
FLOORS = (
    ("device_runtime/base",),
    ("bundle, transcript",),
    ("device_runtime/sound", "device_runtime/decoding"),
    ("device_runtime/engines",),
    ("device_runtime/live", "device_runtime/servers"),
    ("device_runtime",),
    ("weights",),
    ("evaluation", "targets", "synth"),
    ("quantize", "benchmark", "benchmark/live"),
    ("speech_llm",),
    ("pruning",),
    ("healing",),
    ("export",),
    ("prunella",),
)
_SHADES = [
    color for color in plt.get_cmap("tab20").colors if color[0] < 0.8 or color[1] > 0.5
]  # red means: backwards
COLORS = {
    room: _SHADES[index % len(_SHADES)]
    for index, room in enumerate(room for floor in FLOORS for room in floor)
}


def room_of(module: str) -> str:
    """`prunella.device_runtime.sound.vad` → `device_runtime/sound`; what stands in no room is in `prunella`.

    What a bundle and a transcript say stands at device_runtime's top, and below its other rooms.
    """
    known = ("bundle", "manifest", "manifest_reader", "transcript")
    if module in [f"prunella.device_runtime.{name}" for name in known]:
        return "bundle, transcript"
    names = module.split(".")[1:]
    folder = (
        "/".join(names if (ROOT / Path(*names) / "__init__.py").is_file() else names[:-1]) if names else ""
    )
    return folder or "prunella"


def imports() -> Counter[tuple[str, str]]:
    """(importing room, imported room) → how many modules' imports."""
    graph = grimp.build_graph("prunella")
    arrows: Counter[tuple[str, str]] = Counter()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            pair = room_of(importer), room_of(imported)
            if pair[0] != pair[1] and imported != "prunella._version":
                arrows[pair] += 1
    return arrows


def draw_imports(arrows: Counter[tuple[str, str]], out: Path) -> None:
    """Rooms on their floors; an arrow leads from a room to one that it imports. Red: against the order of the floors."""
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    place = {
        room: ((index + 0.5) / len(rooms) * 10, floor * 1.2)
        for floor, rooms in enumerate(FLOORS)
        for index, room in enumerate(rooms)
    }
    figure, axes = plt.subplots(figsize=(10, 11))
    for (importer, imported), count in sorted(arrows.items()):
        if importer not in place or imported not in place:
            continue
        (x0, y0), (x1, y1) = place[importer], place[imported]
        back = floor_of[imported] > floor_of[importer]
        axes.annotate(
            "",
            (x1, y1 + 0.22),
            (x0, y0 - 0.22),
            arrowprops={
                "arrowstyle": "-|>",
                "color": "crimson" if back else COLORS[importer],
                "lw": 0.5 + 0.35 * np.log2(count),
                "alpha": 0.65,
                "connectionstyle": f"arc3,rad={0.12 + 0.02 * abs(y0 - y1)}",
            },
        )
    for room, (x, y) in place.items():
        axes.text(
            x,
            y,
            room,
            ha="center",
            va="center",
            fontsize=10,
            bbox={"boxstyle": "round", "fc": "white", "ec": COLORS[room], "lw": 2},
        )
    axes.set(xlim=(-1, 11), ylim=(-0.8, len(FLOORS) * 1.2 - 0.5))
    axes.axis("off")
    axes.set_title("Rooms and what they import: arrows lead down (one that did not would be red)", fontsize=9)
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def contract_floors() -> dict[str, float]:
    """The layers of the import contracts, lowest first: module or room → its floor; what is named longer counts."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {contract["id"]: contract.get("layers", []) for contract in contracts}
    floors: dict[str, float] = {}
    for number, names in enumerate(reversed(layers["rooms"])):
        floors |= {name.strip().removeprefix("prunella."): number for name in names.split("|")}
    inner = layers["device-rooms"]
    for number, names in enumerate(reversed(inner)):
        floors |= {
            f"device_runtime.{name.strip()}": floors["device_runtime"] + number / len(inner)
            for name in names.split("|")
        }
    return floors


def floor_of(file: str, floors: dict[str, float]) -> float | None:
    """Of a file; None for what no contract names."""
    parts = list(Path(file).with_suffix("").parts)
    while parts and ".".join(parts) not in floors:
        parts.pop()
    return floors.get(".".join(parts))


@dataclass
class Walk:
    """Files of the house in the order in which the data first came to them."""

    files: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)  # rooms, one entry for each time one is entered
    climbs: set[tuple[str, str]] = field(
        default_factory=set
    )  # steps back: calls against the order of the contracts
    floors: dict[str, float] = field(default_factory=contract_floors)

    def step(self, file: str, caller: str | None) -> None:
        low, high = (floor_of(one, self.floors) if one else None for one in (caller, file))
        if low is not None and high is not None and high > low:
            self.climbs.add((str(caller), file))
        if file not in self.files:
            self.files.append(file)
            room = str(Path(file).parent)
            if not self.stays or self.stays[-1] != room:
                self.stays.append(room)

    @property
    def returns(self) -> int:
        """How often a room is entered again that had been left."""
        return len(self.stays) - len(set(self.stays))


def _caller(frame: FrameType) -> str | None:
    """The file of the house that called, through whatever libraries."""
    above = frame.f_back
    while above is not None:
        name = above.f_code.co_filename
        if name.startswith(f"{ROOT}/"):
            return name[len(str(ROOT)) + 1 :]
        above = above.f_back
    return None


@contextmanager
def recorded(carries: Callable[[Any], bool]) -> Iterator[Walk]:
    """The walk of everything inside, in all threads: calls one of whose arguments `carries` the data."""
    walk, lock = Walk(), threading.Lock()
    aside = ("research/", "tests/", "examples/", ".venv")

    def profile(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(str(ROOT)):
            return
        file = name[len(str(ROOT)) + 1 :]
        if file.startswith(aside):
            return
        count = frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount
        values = [frame.f_locals.get(each) for each in frame.f_code.co_varnames[:count]]
        if any(carries(value) for value in values):
            with lock:
                walk.step(file, _caller(frame))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def audio_walk(bundle: str) -> Walk:
    """From a microphone's blocks to the final text."""
    from prunella.benchmark.live.stream import PacedSource
    from prunella.device_runtime.listen import listen

    transcriber = open_transcriber(bundle)
    samples = np.concatenate([load_audio(CLIP), np.zeros(24_000, np.float32)])
    blocks = iter(np.array_split(samples, len(samples) // 1_600))
    texts: list[str] = []
    with recorded(
        lambda value: isinstance(value, np.ndarray) or type(value).__name__ == "AudioBlock"
    ) as walk:
        listen(transcriber, PacedSource(blocks, speed=4.0), lambda event: texts.append(event.text))
    if not any(texts):
        raise SystemExit("nothing was heard: no walk")
    return walk


def checkpoint_walk() -> Walk:
    """From a cut to a bundle: prune, save, load, export, quantize. A tiny random model walks like a large one."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_models import byte_level_tokenizer, tiny_speech_llm
    from transformers import PreTrainedModel

    from prunella.device_runtime.bundle import Bundle, open_bundle
    from prunella.evaluation.manifest import read_manifest
    from prunella.export.export import export
    from prunella.pruning import Evidence, choose_blocks, measure_redundancy, prune, speech_calibration
    from prunella.quantize.bundle_writer import requantize
    from prunella.speech_llm import SpeechLLM, load, save_checkpoint
    from prunella.speech_llm.config import Prompt

    model = tiny_speech_llm(
        byte_level_tokenizer(),
        seed=0,
        layers=4,
        prompt=Prompt("user: ", " say it: ", "<|im_end|>"),
        max_position_embeddings=2_048,
    )
    speech = read_manifest(ROOT / "examples" / "clips" / "evaluation.jsonl")
    with (
        tempfile.TemporaryDirectory() as folder,
        recorded(lambda value: isinstance(value, (SpeechLLM, PreTrainedModel, Bundle))) as walk,
    ):
        calibration = speech_calibration(model, speech)
        blocks = choose_blocks(
            Evidence(model.decoder, measure_redundancy(model.decoder, calibration.fit), calibration), size=1
        )
        pruned, _ = prune(model, blocks, calibration=calibration)
        save_checkpoint(pruned, f"{folder}/pruned")
        export(load(f"{folder}/pruned"), "x86-cpu", f"{folder}/fp32", recipe="fp32")
        requantize(open_bundle(f"{folder}/fp32"), "int4", f"{folder}/int4")
    return walk


def draw_walk(walk: Walk, title: str, out: Path) -> None:
    """Files from top to bottom in their order, rooms side by side."""
    rooms = list(dict.fromkeys(walk.stays))
    figure, axes = plt.subplots(figsize=(2.4 * len(rooms) + 1, 0.34 * len(walk.files) + 1.2))
    points = [(rooms.index(str(Path(file).parent)), -index) for index, file in enumerate(walk.files)]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        axes.annotate(
            "",
            (x1, y1),
            (x0, y0),
            arrowprops={"arrowstyle": "-|>", "color": "0.6", "shrinkA": 6, "shrinkB": 6},
        )
    for (x, y), file in zip(points, walk.files, strict=True):
        color = COLORS.get(rooms[x], "0.5")
        axes.text(
            x,
            y,
            Path(file).name,
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round", "fc": "white", "ec": color, "lw": 1.5},
        )
    for x, room in enumerate(rooms):
        axes.text(x, 1.1, "prunella" if room == "." else f"{room}/", ha="center", fontsize=9, weight="bold")
    axes.set(xlim=(-0.7, len(rooms) - 0.3), ylim=(-len(walk.files), 2))
    axes.axis("off")
    axes.set_title(
        f"{title}: {len(walk.files)} files, {len(rooms)} rooms; entered again by calls down {walk.returns} times; steps back: {len(walk.climbs)}",
        fontsize=9,
    )
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="whose runtime the audio walks through")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "house")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw_imports(imports(), args.out / "imports.svg")
    for name, title, walk in (
        ("audio", "A microphone's audio on its way to text", audio_walk(args.bundle)),
        ("checkpoint", "A checkpoint on its way from `prune` to a quantised bundle", checkpoint_walk()),
    ):
        draw_walk(walk, title, args.out / f"{name}.svg")
        print(
            f"{name}: {' -> '.join(walk.files)}; rooms entered again: {walk.returns}; steps back: {sorted(walk.climbs)}"
        )


if __name__ == "__main__":
    main()
