"""How much does healing give back? Layers removed against word errors, arm by arm.

    python research/healing_curve/curve.py --train TRAIN.jsonl --dev DEV.jsonl

Every arm is cut, bridged and trained as `arms.py` says, then exported (int8) and evaluated. The uncut model is trained for
`--minutes`; every other arm gets the FLOPs that this took, whatever machine it is made on. Resumable: arms that are done are not made again, one that was killed goes on from its last checkpoint.
`--arm NAME` takes that one (repeatable, in the order given). After every arm curve.json, curve.png and curve.md are
written anew in `--out`, beside one file an arm, which holds its errors clip by clip; `--work` is for features,
checkpoints and transcripts, and large. `--by-heart` makes no arm: it prints how well the named ones know their training speech.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from arms import RIVAL, Arm, all_arms
from page import write_page
from picture import draw
from tqdm import tqdm

from prunella.device_runtime.base.errors import AudioError, UsageError
from prunella.device_runtime.base.files import write_json
from prunella.device_runtime.opening import open_transcriber
from prunella.evaluation.evaluate import evaluate
from prunella.evaluation.manifest import read_manifest
from prunella.export.export import export
from prunella.healing.allocator import restart_with_tcmalloc
from prunella.healing.clips import open_speech, tokenize
from prunella.healing.features import FeatureStore, module_digest
from prunella.healing.heal import heal
from prunella.healing.plan import Augmentation, HealingPlan
from prunella.healing.training_speed import choose_precision
from prunella.pruning.blocks import Block
from prunella.pruning.calibration import Calibration, speech_batches, speech_calibration
from prunella.pruning.prune import prune
from prunella.pruning.redundancy import measure_redundancy
from prunella.pruning.selection import Evidence, choose_blocks
from prunella.speech_llm.batches import cross_entropy
from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.process import tune
from prunella.speech_llm.reference import wheel_decoder


class Curve:
    """All arms over one model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out
        self.work: Path = args.work
        # A name such as `reference` may be another model tomorrow.
        self.model_weights = module_digest(load(args.model))
        strangers = [one for one in self.points() if one["model_weights"] != self.model_weights]
        if strangers:
            raise UsageError(
                f"{self.out} holds arms of another model than '{args.model}', {strangers[0]['arm']['name']} among them: "
                "give another --out, or the --model that they were made of"
            )
        train = read_manifest(args.train)
        self.calibration_clips = train.at_most(18).sample(args.calibration_clips, seed=1)
        dev = read_manifest(args.dev).at_most(18)
        main = dev.only([args.source]).limit(args.dev_clips)
        others = dev.only([name for name in dev.sources if name != args.source]).limit(
            args.other_clips, seed=0
        )
        self.dev = {"main": main, "others": others}
        self.conditions = {"minutes": args.minutes, "model": args.model,
                           "model_weights": self.model_weights, "source": args.source,
                           "clips": {part: len(manifest) for part, manifest in self.dev.items()},
                           "calibration_clips": len(self.calibration_clips)}  # fmt: skip
        self._check_conditions()

    def _check_conditions(self) -> None:
        """Arms made under two conditions are no curve. One model may go by two names: the weights were compared before."""
        page = self.out / "curve.json"
        before = json.loads(page.read_text())["conditions"] if page.exists() else {}
        changed = [f"{key} {before[key]}, not {now}" for key, now in self.conditions.items()
                   if key in before and before[key] != now and key != "model"]  # fmt: skip
        if changed:
            raise UsageError(
                f"{self.out} holds arms that were made otherwise ({'; '.join(changed)}): give another --out, or their settings"
            )

    def points(self) -> list[dict[str, Any]]:
        """The arms that are done, in the order of `all_arms`."""
        order = {arm.name: place for place, arm in enumerate(all_arms())}
        points = [json.loads(path.read_text()) for path in (self.out / "arms").glob("*.json")]
        return sorted(points, key=lambda point: order.get(point["arm"]["name"], len(order)))

    def steps(self, arm: Arm, model: SpeechLLM, full: SpeechLLM) -> int | None:
        """Optimiser steps of one of the arm's stages: as many FLOPs as the uncut model's training took; None: by the minutes.

        Minutes are not the same work on two machines. A step is 4 FLOPs a weight of the decoder and a position (2 forward,
        2 backward: the weights themselves get no gradient), and 2 more for each weight of a teacher.
        """
        rival = next((one for one in self.points() if one["arm"]["name"] == RIVAL), None)
        if rival is None or arm.name == RIVAL:
            return None
        step = 4 * decoder_weights(model) + (2 * decoder_weights(full) if arm.teacher else 0)
        return max(1, round(rival["steps"] / arm.stages * 4 * decoder_weights(full) / step))

    def plan(self, arm: Arm, steps: int | None = None) -> HealingPlan:
        """How an arm is trained. None hears a clip three times in its budget, so there is one variant of each: features take time too."""
        return HealingPlan(
            train=arm.train,
            lora=arm.lora,
            hidden_weight=arm.hidden_weight,
            steps=steps,
            minutes=self.args.minutes / arm.stages if steps is None else None,
            dev_minutes=1e9,
            batch_positions=1_536,
            micro_positions=1_536,
            augmentation=Augmentation(variants=1),
        )

    def encode(self) -> None:
        """Make every clip's features before the first arm: it would else pay for those that all arms share."""
        model = load(self.args.model)
        plan = self.plan(Arm("features", 0, train=("projector",)))
        speed = plan.augmentation.speed
        store = FeatureStore(
            model,
            tokenize(model, open_speech([self.args.train]), slowest=speed),
            plan.augmentation,
            plan.seed,
            encode=True,
            precision=choose_precision(plan.precision, torch.device("cpu")),
            folder=self.work / "features",
        )
        for index in tqdm(range(len(store)), desc="features", file=sys.stderr, disable=None):
            with contextlib.suppress(AudioError):  # reported where it is trained on
                store.finish(store.load(index, 0), index, 0)

    def run(self, arm: Arm) -> None:
        """Make and judge one arm, unless it is done."""
        done = self.out / "arms" / f"{slug(arm.name)}.json"
        if done.exists():
            return
        sys.stderr.write(f"{arm.name} ...\n")
        began = time.perf_counter()
        model, cuts, training = self.make(arm)
        judged = self.judge(model, arm.name)
        facts = {"blocks": cuts, "layers": len(model.layers), **training,
                 "minutes": round((time.perf_counter() - began) / 60, 2), "dev": judged}  # fmt: skip
        if self.args.keep and arm.train:
            save_checkpoint(model, self.work / "models" / slug(arm.name))
        write_json(done, {"arm": asdict(arm), "model_weights": self.model_weights, **facts})

    def make(self, arm: Arm) -> tuple[SpeechLLM, list[str], dict[str, Any]]:
        """The arm's model, the blocks cut from it (of the model before each cut), and what its training took."""
        full = load(self.args.model)
        model = full.with_decoder(wheel_decoder()) if arm.decoder == "base" else load(self.args.model)
        cuts: list[str] = []
        minutes, steps, budget, precision = 0.0, 0, 0, None
        for stage in range(arm.stages):
            if arm.drop:
                calibration: Calibration = speech_calibration(model, self.calibration_clips)
                blocks = self.chosen_before(arm) or self.choose(arm, model, calibration)
                model, report = prune(
                    model, blocks, calibration=calibration, bridge=arm.bridge, strategy=arm.strategy
                )
                cuts += report.blocks
            if arm.train:
                work = self.work / "runs" / f"{slug(arm.name)}-{stage}"
                given = self.steps(arm, model, full)
                budget += given or 0
                heal(
                    model,
                    self.plan(arm, given),
                    open_speech([self.args.train]),
                    teacher=full if arm.teacher else None,
                    work=work,
                    cache=self.work / "features",
                    progress=True,
                )
                run = model.config.provenance["healing"][-1]
                minutes, steps, precision = minutes + run["minutes"], steps + run["steps"], run["precision"]
        took = {
            "training_minutes": round(minutes, 2),
            "threads": torch.get_num_threads(),
            "steps": steps,
            "precision": precision,
        }
        return model, cuts, took | ({"budget_steps": budget} if budget else {})

    def choose(self, arm: Arm, model: SpeechLLM, calibration: Calibration) -> tuple[Block, ...]:
        """What one stage of the arm cuts."""
        redundancy = measure_redundancy(
            model.decoder, speech_batches(model, self.calibration_clips.utterances)
        )
        evidence = Evidence(model.decoder, redundancy, calibration)
        return choose_blocks(evidence, arm.drop // arm.stages, arm.strategy)

    def chosen_before(self, arm: Arm) -> tuple[Block, ...]:
        """What an arm with the same cut has chosen; empty: there is none, or each stage has to choose for itself."""
        cut = {key: getattr(arm, key) for key in ("drop", "strategy", "decoder", "stages")}
        for point in self.points() if arm.stages == 1 else ():
            if cut.items() <= point["arm"].items():
                return tuple(map(Block.parse, point["blocks"]))
        return ()

    def judge(self, model: SpeechLLM, name: str) -> dict[str, dict[str, Any]]:
        """Word errors and cross-entropy on both halves of the dev speech, through the int8 export.

        As `transcribe` decodes, with beams where they pay; `greedy`: the main half without, where the decoder is on its own.
        `clips`: clip by clip how many words were wrong and how many there are.
        """
        with tempfile.TemporaryDirectory() as folder:
            export(model, "x86-cpu", Path(folder) / "bundle", recipe="int8")
            gc.collect()
            alone = open_transcriber(Path(folder) / "bundle").with_options(beams=1)
            beams = alone.with_options(beams=0)
            parts = {part: (beams, manifest) for part, manifest in self.dev.items()}
            parts["greedy"] = (alone, self.dev["main"])
            judged: dict[str, dict[str, Any]] = {}
            for part, (system, manifest) in parts.items():
                report = evaluate(
                    system, manifest, score=part != "greedy", name=name, records=self._records(name, part)
                )
                clips = {r.id: (r.errors.words.errors, r.errors.words.reference) for r in report.records}
                judged[part] = report.overall.to_json() | {"clips": clips}
        return judged

    def by_heart(self, arm: Arm) -> tuple[float, float]:
        """The arm's loss in nats a token, in float32, on training speech, of the main source where it has any, and on the main dev clips."""
        model = self.make(arm)[0]
        train_speech = read_manifest(self.args.train).at_most(18)
        if self.args.source in train_speech.sources:
            train_speech = train_speech.only([self.args.source])
        heard = train_speech.sample(100, seed=5)
        train, dev = (
            cross_entropy(model.decoder, speech_batches(model, manifest.utterances))
            for manifest in (heard, self.dev["main"])
        )
        return train, dev

    def report(self) -> None:
        """Write what is there so far."""
        points = self.points()
        write_json(
            self.out / "curve.json", {"conditions": self.conditions, "points": [summary(p) for p in points]}
        )
        draw(points, self.out / "curve.png")
        write_page(points, self.conditions, self.out)

    def _records(self, name: str, part: str) -> Path:
        return self.work / "records" / f"{slug(name)}-{part}.jsonl"


def decoder_weights(model: SpeechLLM) -> int:
    """How many weights the decoder has; its embeddings, which are its head too, count once."""
    return sum(parameter.numel() for parameter in model.decoder.parameters())


def summary(point: dict[str, Any]) -> dict[str, Any]:
    """A point without its errors clip by clip, which its own file has."""
    parts = point["dev"].items()
    dev = {part: {key: value for key, value in row.items() if key != "clips"} for part, row in parts}
    return {**point, "dev": dev}


def slug(name: str) -> str:
    """A file name for an arm."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference")
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument(
        "--source", default="librispeech_train_clean_5", help="dev source of the main figures"
    )
    parser.add_argument("--dev-clips", type=int, default=90)
    parser.add_argument("--other-clips", type=int, default=25, help="of every other dev source")
    parser.add_argument("--calibration-clips", type=int, default=120)
    parser.add_argument("--minutes", type=float, default=15.0, help="of training for the uncut model")
    parser.add_argument("--arm", action="append", metavar="NAME", help="only this one (repeatable)")
    parser.add_argument(
        "--by-heart",
        action="store_true",
        help="only print the loss of each --arm on training and dev speech; an arm whose run is still in --work is not trained again",
    )
    parser.add_argument("--keep", action="store_true", help="keep the trained checkpoints")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, default=Path("out/healing_curve"))
    args = parser.parse_args()
    arms = {arm.name: arm for arm in all_arms()}
    unknown = [name for name in args.arm or () if name not in arms]
    if unknown:
        parser.error(f"no arm {', '.join(unknown)}: choose from {'; '.join(arms)}")
    if args.by_heart and not args.arm:
        parser.error("--by-heart needs --arm NAME (repeatable): without one it would train every arm")
    chosen = [arms[name] for name in args.arm or arms]
    try:
        curve = Curve(args)
    except UsageError as error:
        parser.error(str(error))
    if any(arm.train for arm in chosen):
        curve.encode()
    if args.by_heart:
        for arm in chosen:
            train, dev = curve.by_heart(arm)
            print(f"{arm.name}: training speech {train:.3f}, dev speech {dev:.3f} nats a token", flush=True)
        return 0
    for arm in chosen:
        curve.run(arm)
        curve.report()
    curve.report()
    return 0


if __name__ == "__main__":
    restart_with_tcmalloc()
    tune()
    raise SystemExit(main())
