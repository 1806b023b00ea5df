"""What would more speech, more time or a larger encoder give? The alignment stage alone, from a fresh projector.

    python research/reference_model/learning_curve.py --real train.jsonl --synth out/synth/manifest.jsonl \\
        --dev dev.jsonl --encoder tiny.en=tiny/model.bin --encoder base=base/model.bin --minutes 5

`prunella heal --stage ctc` in small: a projector learns, from a Whisper encoder that stays as it is, to say the decoder's
token embeddings. The word errors of that alone, without the LLM's help, show what the LLM gets to work with, and cost
minutes instead of hours. Every arm is trained for the same minutes; those done are not made again. Writes
learning_curve.json and learning_curve.png.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from change_encoder import change_encoder, whisper_encoder
from matplotlib import pyplot

from prunella.device_runtime.base.files import whole_file, write_json
from prunella.evaluation.manifest import read_manifest
from prunella.healing.clips import Clip, manifest_clips, open_speech
from prunella.healing.heal import heal
from prunella.healing.plan import Augmentation, HealingPlan
from prunella.healing.run_state import read_state
from prunella.speech_llm.load import load
from prunella.speech_llm.process import tune


@dataclass(frozen=True)
class Point:
    """One arm: which encoder hears how many hours."""

    encoder: str
    real_hours: float
    synth_hours: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.encoder}, {self.real_hours:g} h real, {self.synth_hours:g} h synthesised"


def all_points(encoders: list[str], real_hours: float, synth_hours: float) -> list[Point]:
    """Halves of the real speech with the first encoder; with all of it, synthesised speech; then the other encoders."""
    first = encoders[0]
    shares = [0.125, 0.25, 0.5, 1.0]
    points = [Point(first, round(real_hours * share, 2)) for share in shares]
    points += [
        Point(first, round(real_hours, 2), round(synth_hours * share, 2))
        for share in (0.5, 1.0)
        if synth_hours
    ]
    # Only synthesised speech: what a voice from the machine is worth beside people.
    points += [Point(first, 0.0, round(synth_hours, 2))] if synth_hours else []
    return points + [Point(other, round(real_hours, 2)) for other in encoders[1:]]


def first_hours(clips: list[Clip], hours: float) -> list[Clip]:
    """The first clips that make up so many hours, of a shuffle that is the same for all arms, so that they share features."""
    mixed = clips.copy()
    random.Random(0).shuffle(mixed)
    kept, seconds = [], 0.0
    for clip in mixed:
        if seconds >= 3600 * hours:
            break
        kept.append(clip)
        seconds += clip.seconds
    return kept


def train(point: Point, args: argparse.Namespace, real: list[Clip], synth: list[Clip]) -> dict[str, Any]:
    """One arm; its facts, with the dev word errors over time."""
    model = load(args.model)
    change_encoder(model, *whisper_encoder(dict(args.encoder)[point.encoder]), args.hidden)
    clips = first_hours(real, point.real_hours) + first_hours(synth, point.synth_hours)
    plan = HealingPlan(
        stage="ctc",
        train=("projector",),
        projector_lr=1e-3,
        minutes=args.minutes,
        dev_minutes=args.minutes / 5,
        augmentation=replace(Augmentation.none(), masks=0.3),
    )
    dev = read_manifest(args.dev).only({args.dev_source}).at_most(18.0).limit(args.dev_clips)
    work = args.work / "runs" / point.name.replace(", ", "-").replace(" ", "-")
    heal(model, plan, clips, dev=manifest_clips(dev), work=work, cache=args.work / "features", progress=True)
    state = read_state(work)
    assert state is not None
    words = {word for clip in clips for word in clip.text.split()}
    return {**asdict(point), "name": point.name, "clips": len(clips), "distinct_words": len(words), "steps": state.step,
            "hours_heard": round(state.speech_seconds / 3600, 2), "minutes": round(state.seconds / 60, 2),
            "dev_wer": state.history[-1]["dev_wer"], "history": state.history}  # fmt: skip


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Left: the last WER against the hours there are; right: WER against minutes of training."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), dpi=130, sharey=True)
    first = points[0]["encoder"]
    lines = {
        "real speech": [p for p in points if p["encoder"] == first and not p["synth_hours"]],
        "all real speech + synthesised": [
            p for p in points if p["encoder"] == first and p["real_hours"] and p["synth_hours"]
        ],
        "only synthesised": [p for p in points if not p["real_hours"]],
        **{f"{p['encoder']}, all real speech": [p] for p in points if p["encoder"] != first},
    }
    for label, line in lines.items():
        if line:
            hours = [p["real_hours"] + p["synth_hours"] for p in line]
            left.plot(hours, [100 * p["dev_wer"] for p in line], marker="o", label=label)
    left.set_xscale("log")
    left.set_xlabel("hours of speech to learn from")
    left.set_ylabel("dev WER % of the alignment alone")
    for point in points:
        minutes = [entry["seconds"] / 60 for entry in point["history"]]
        right.plot(minutes, [100 * entry["dev_wer"] for entry in point["history"]], label=point["name"])
    right.set_xlabel("minutes of training")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", bbox_inches="tight")
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="append", required=True, metavar="MANIFEST")
    parser.add_argument("--synth", action="append", default=[], metavar="MANIFEST")
    parser.add_argument("--dev", required=True, metavar="MANIFEST")
    parser.add_argument("--dev-source", default="librispeech_train_clean_5")
    parser.add_argument("--dev-clips", type=int, default=90)
    parser.add_argument(
        "--encoder", action="append", required=True, type=_named, metavar="NAME=MODEL.BIN",
        help="a CTranslate2 Whisper (repeatable); the first one hears every amount of speech",
    )  # fmt: skip
    parser.add_argument("--model", default="reference", help="whose decoder's embeddings are learned")
    parser.add_argument("--hidden", type=int, default=2_048, help="of the projector")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, default=Path("out/learning_curve"))
    args = parser.parse_args()
    real = open_speech(args.real)
    synth = open_speech(args.synth) if args.synth else []
    hours = [sum(clip.seconds for clip in clips) / 3600 for clips in (real, synth)]
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "learning_curve.json"
    done = json.loads(file.read_text()) if file.exists() else {"conditions": {}, "points": []}
    names = {point["name"] for point in done["points"]}
    for point in all_points([name for name, _ in args.encoder], *hours):
        if point.name in names:
            continue
        sys.stderr.write(f"{point.name} ...\n")
        done["points"].append(train(point, args, real, synth))
        done["conditions"] = {"minutes": args.minutes, "dev_source": args.dev_source, "dev_clips": args.dev_clips,
                              "hidden": args.hidden}  # fmt: skip
        write_json(file, done)
        draw(done["points"], args.out / "learning_curve.png")
    return 0


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=FILE with a file that is there")
    return name, Path(path)


if __name__ == "__main__":
    tune()
    raise SystemExit(main())
