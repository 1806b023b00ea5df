"""The whole path in one resumable command: measure, prune, bridge, export, quantise, evaluate, and one table at the end.

    prunella build reference --target x86-cpu --drop 3 -o out/reference-3
    prunella build reference --target x86-cpu --healed reference-pruned -o out/demo

Every step leaves one artefact, whole or not at all; the same command goes on after the last one that is there.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prunella._version import __version__
from prunella.benchmark.build_table import BuildRow, render_rows
from prunella.benchmark.compare import measure
from prunella.device_runtime.base.errors import PrunellaError, UsageError
from prunella.device_runtime.base.extras import importable, require
from prunella.device_runtime.base.files import sha256, write_json, write_text
from prunella.device_runtime.base.outputs import check_name, check_output, check_space, contents
from prunella.device_runtime.bundle import open_bundle
from prunella.device_runtime.engines.llama_library import llama_library
from prunella.device_runtime.engines.providers import unannounced
from prunella.evaluation.evaluate import evaluate
from prunella.evaluation.manifest import SpeechManifest, read_manifest
from prunella.evaluation.systems import BASELINE, open_system
from prunella.export.export import default_recipe, export_float, float_recipe
from prunella.export.onnx_families import check_onnx_decoder
from prunella.needs import recipe_modules
from prunella.pruning.analyze import MAP_NAME, analyze, save_analysis
from prunella.pruning.blocks import Block, check_blocks
from prunella.pruning.calibration import (
    Calibration,
    read_lines,
    speech_batches,
    speech_calibration,
    text_batches,
)
from prunella.pruning.history import blocks_between
from prunella.pruning.prune import REPORT_NAME, layers_to_drop, prune, save_pruned
from prunella.pruning.redundancy import load_maps
from prunella.pruning.selection import STRATEGIES, Evidence, choose_blocks
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.quantize.bundle_writer import requantize
from prunella.speech_llm.checkpoint import save_checkpoint, saved_bytes
from prunella.speech_llm.load import load, resolve
from prunella.speech_llm.model import SpeechLLM
from prunella.targets.detect import match_target
from prunella.targets.machine import read_machine
from prunella.targets.profile import TargetProfile, load_target

_EXAMPLES = Path(__file__).parent / "examples"
PLAN_NAME, REPORT_JSON, REPORT_TABLE = "plan.json", "report.json", "report.md"
BENCH_CLIPS, BENCH_REPEATS = 5, 3
_COMPARED = ("int8", "int4", "Q8_0", "Q4_0", "int8+Q8_0")  # beside the float and the target's own
_HEAL_MINUTES = 15.0
TEXT_LINES = 40  # of the text: about as many positions as 70 short clips


@dataclass(frozen=True)
class BuildPlan:
    """Everything that decides what a build makes."""

    model: str
    target: str
    calibration: str
    evaluation: str
    text: str | None = None
    drop: int | None = None
    keep: float | None = None
    blocks: tuple[str, ...] = ()
    strategy: str = "bridged"
    bridge: bool = True
    clips: int = 200  # calibration clips used at most
    heal_minutes: float | None = (
        None  # of training after the cut, with the full model as teacher; None: no healing
    )
    heal_speech: tuple[str, ...] = ()  # manifests or hf: data sets to heal on; none: the calibration speech
    healed: str | None = None  # what was healed from a cut of `model`: that cut is made, and this is exported
    baseline: bool = True  # Whisper tiny.en with its own decoder as a row

    @property
    def heals(self) -> bool:
        """Whether what is left after the cut is trained here."""
        return self.heal_minutes is not None

    def decisions(self) -> dict[str, Any]:
        """What decides the artefacts, by the words in which a difference is said.

        Not the minutes of healing, of which a build may be given more, nor the baseline, which is only a row.
        """
        profile = asdict(load_target(self.target))
        facts = {
            key: value for key, value in profile.items() if key not in ("description", "install", "match")
        }
        data = {
            "--calibration": self.calibration,
            "--evaluation": self.evaluation,
            "--text": self.text,
            **{f"--heal-speech {path}": path for path in self.heal_speech},
        }
        models = {"the model": self.model, "--healed": self.healed}
        return {
            **{what: name and str(resolve(name).resolve()) for what, name in models.items()},
            "--target": profile["name"],
            "the target's profile": _digest(facts),
            "--drop": self.drop,
            "--keep": self.keep,
            "--block": " ".join(self.blocks) or None,
            "--strategy": self.strategy,
            "--no-bridge": not self.bridge,
            "--clips": self.clips,
            "--heal": self.heals,
            **{what: path and _file_digest(path) for what, path in data.items()},
            "prunella": __version__,
        }


@dataclass(frozen=True)
class BuildReport:
    """The rows, and the folder of the bundle that was asked for."""

    rows: tuple[BuildRow, ...]
    bundle: Path
    heading: str = ""  # of the table, where it was not measured on the target


class Build:
    """One build in one folder. `run` goes through the steps and skips those whose artefact is there."""

    def __init__(self, plan: BuildPlan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.target: TargetProfile = load_target(plan.target)
        self.heading = _measured_elsewhere(self.target)
        self._model: SpeechLLM | None = None
        self._calibration: Calibration | None = None
        # Of the engines that the target's recipe is for: the float one that the others come from, and what is compared.
        asked = find_bundle_recipe(self.target.recipe)
        if "Q4_K_M" in self.target.recipe:  # what that becomes depends on the model
            asked = find_bundle_recipe(default_recipe(self.model, self.target))
        self.recipe = asked.name
        self.float_recipe = float_recipe(asked.engines)
        compared = [name for name in _COMPARED if find_bundle_recipe(name).engines == asked.engines]
        offered = [name for name in compared if name in self.target.recipes]
        self.recipes = tuple(dict.fromkeys([self.float_recipe, *offered, self.recipe]))
        self._label = (
            "ONNX" if asked.engines == ("onnx",) else "GGUF" if asked.engines == ("gguf",) else "both"
        )

    @property
    def model(self) -> SpeechLLM:
        """The full model, loaded when a step first needs it."""
        if self._model is None:
            self._model = load(self.plan.model)
        return self._model

    @property
    def calibration(self) -> Calibration:
        """The calibration speech, read when a step first needs it."""
        if self._calibration is None:
            manifest = read_manifest(self.plan.calibration).sample(self.plan.clips)
            self._calibration = speech_calibration(self.model, manifest)
        return self._calibration

    def run(self) -> BuildReport:
        """Do what is left to do.

        Raises:
            UsageError: the folder holds another build.
        EngineError: a library that a step needs is not installed, or cannot be loaded.
        """
        check_output(self.out, replaces=False)
        _check_libraries(self.recipe, self.plan.baseline)
        self._claim_folder()
        steps = self._steps()
        with (
            unannounced(bool(self.heading)),
            tqdm(steps, file=sys.stderr, disable=None, bar_format="{n}/{total} {desc} [{elapsed}]") as bar,
        ):
            for artefact, what, step in bar:
                bar.set_description(what)
                if not artefact.exists():
                    sys.stderr.write(f"{what} ...\n") if bar.disable else None
                    step()
        rows = tuple(BuildRow(**json.loads(path.read_text())) for path in self._row_files())
        report = BuildReport(rows, self._bundle("pruned", self.recipe), self.heading)
        write_json(self.out / REPORT_JSON, {"plan": asdict(self.plan), "rows": [asdict(row) for row in rows]})
        write_text(self.out / REPORT_TABLE, render_rows(rows, markdown=True, heading=self.heading) + "\n")
        return report

    def _claim_folder(self) -> None:
        plan_file = self.out / PLAN_NAME
        decisions = self.plan.decisions()
        claim = {"plan": asdict(self.plan), "decisions": decisions}
        begun = _begun(self.out)
        if begun is None:
            write_json(plan_file, claim)
        elif begun.get("decisions") != decisions:
            raise UsageError(
                f"{self.out} holds another build ({_differences(begun.get('decisions'), decisions)}): give the same, "
                "choose another folder with -o, or remove it"
            )

    def _steps(self) -> list[tuple[Path, str, Callable[[], Any]]]:
        steps: list[tuple[Path, str, Callable[[], Any]]] = [
            (self.out / "redundancy" / MAP_NAME, "measuring redundancy", self._analyze),
            (self.out / "pruned", "choosing a block, cutting and bridging", self._prune),
            (self.out / "cut", "saving the cut without its bridge", self._cut),
        ]
        if self.plan.heals:
            steps.append((self.out / "healed", "healing", self._heal))
        for kind in ("full", "pruned"):
            for recipe in self.recipes:
                make = self._export if recipe == self.float_recipe else self._requantize
                steps.append(
                    (self._bundle(kind, recipe), f"exporting {kind} as {recipe}", _call(make, kind, recipe))
                )
        for name, system in self._systems().items():
            steps.append((self._row_file(name), f"evaluating {name}", _call(self._evaluate, name, system)))
        return steps

    def _analyze(self) -> None:
        manifest = read_manifest(self.plan.calibration).sample(self.plan.clips)
        text = None
        if self.plan.text:
            text = text_batches(
                self.model.decoder, self.model.tokenizer, read_lines(self.plan.text)[:TEXT_LINES]
            )
        analysis = analyze(self.model, speech=speech_batches(self.model, manifest.utterances), text=text)
        save_analysis(analysis, self.out / "redundancy", Path(self.plan.model).name)

    def _prune(self) -> None:
        count = len(self.model.layers)
        blocks: tuple[Block, ...] = tuple(Block.parse(text) for text in self.plan.blocks)
        strategy = "block" if blocks else self.plan.strategy
        if not blocks:
            size = layers_to_drop(count, drop=self.plan.drop, keep=self.plan.keep)
            maps = load_maps(self.out / "redundancy" / MAP_NAME)
            evidence = Evidence(self.model.decoder, maps["speech"], self.calibration)
            blocks = choose_blocks(evidence, size, strategy)
        pruned, report = prune(
            self.model, blocks, calibration=self.calibration, bridge=self.plan.bridge, strategy=strategy
        )
        save_pruned(pruned, report, self.out / "pruned")

    def _cut(self) -> None:
        cut, report = prune(self.model, self._blocks(), calibration=None, strategy=self.plan.strategy)
        save_pruned(cut, report, self.out / "cut")

    def _heal(self) -> None:
        # Imported here: a build without healing needs neither peft nor accelerate.
        from prunella.healing.clips import open_speech
        from prunella.healing.heal import heal
        from prunella.healing.plan import HealingPlan

        speech = open_speech(self.plan.heal_speech or [self.plan.calibration])
        healed = heal(
            load(self.out / "pruned"),
            HealingPlan(minutes=self.plan.heal_minutes),
            speech,
            teacher=self.model,
            work=self.out / "healed.healing",
            progress=True,
        )
        save_checkpoint(healed, self.out / "healed")

    @property
    def _healed(self) -> Path | None:
        """The checkpoint of the model after healing, if there is any."""
        if self.plan.healed:
            return resolve(self.plan.healed)
        return self.out / "healed" if self.plan.heals else None

    @property
    def _smaller(self) -> Path:
        """The checkpoint that is exported beside the full model."""
        return self._healed or self.out / "pruned"

    def _blocks(self) -> tuple[Block, ...]:
        report = json.loads((self.out / "pruned" / REPORT_NAME).read_text(encoding="utf-8"))
        return tuple(Block.parse(text) for text in report["blocks"])

    def _export(self, kind: str, recipe: str) -> None:
        model = self.model if kind == "full" else load(self._smaller)
        facts = {"name": self._name(kind)}
        export_float(model, self.target, self._bundle(kind, recipe), provenance=facts, recipe=recipe)

    def _name(self, kind: str) -> str:
        """Never that of a shipped model for a cut made here: it names the block."""
        name = Path(self.plan.model).name
        if kind == "full":
            return name
        if self.plan.healed:
            return Path(self.plan.healed).name
        return f"{name}-cut-{'+'.join(map(str, self._blocks()))}" + ("-healed" if self.plan.heals else "")

    def _requantize(self, kind: str, recipe: str) -> None:
        requantize(open_bundle(self._bundle(kind, self.float_recipe)), recipe, self._bundle(kind, recipe))

    def _systems(self) -> dict[str, str]:
        systems = {
            "full, PyTorch": str(resolve(self.plan.model)),
            "cut, PyTorch": str(self.out / "cut"),
            "pruned, PyTorch": str(self.out / "pruned"),
        }
        if self._healed:
            systems["healed, PyTorch"] = str(self._healed)
        for kind in ("full", "pruned"):
            systems |= {
                f"{kind}, {self._label} {recipe}": str(self._bundle(kind, recipe)) for recipe in self.recipes
            }
        if self.plan.baseline:
            systems["Whisper tiny.en, own decoder, int8"] = BASELINE
        return systems

    def _evaluate(self, name: str, system: str) -> None:
        self._model = self._calibration = None  # no longer needed, and memory is
        manifest = read_manifest(self.plan.evaluation)
        # Timed before this process holds the system too: idle threads of a loaded engine cost the measured one.
        record = measure([system], shortest(manifest, BENCH_CLIPS), repeat=BENCH_REPEATS).records[0]
        opened = open_system(system, beams=0)
        report = evaluate(opened.system, manifest, name=name, fingerprint=opened.fingerprint, progress=True)
        del opened
        gc.collect()
        total = report.overall
        row = BuildRow(
            name=name,
            layers=_layers(system),
            disk_bytes=record.disk_bytes,
            cross_entropy=total.cross_entropy,
            wer=total.wer,
            wer_low=total.wer_low,
            wer_high=total.wer_high,
            real_time_factor=record.real_time_factor,
            decode_tokens_per_second=record.decode_tokens_per_second,
            peak_memory_bytes=record.peak_memory_bytes,
        )
        write_json(self._row_file(name), asdict(row))

    def _bundle(self, kind: str, recipe: str) -> Path:
        return self.out / f"{kind}-{recipe}"

    def _row_file(self, name: str) -> Path:
        return self.out / "rows" / f"{name.replace(', ', '-').replace(' ', '-').lower()}.json"

    def _row_files(self) -> list[Path]:
        return [self._row_file(name) for name in self._systems()]


def build(plan: BuildPlan, out: str | Path) -> BuildReport:
    """Walk the whole path for a target, picking up where an earlier call stopped.

    Raises:
        PrunellaError: what a step raises; the artefacts of the steps before it stay.
    """
    return Build(plan, Path(out)).run()


def healed_blocks(model: str, healed: str) -> tuple[str, ...]:
    """The blocks that were cut from `model` before `healed` was healed, as its provenance says.

    Raises:
        UsageError: it says nothing, what is left has not so many layers, or `model` is not what was cut.
    """
    blocks = tuple(map(str, blocks_between(load(model), load(healed))))
    if not blocks:
        raise UsageError(
            f"{healed} was not cut from {model}: name the model that it was pruned from, or build with --drop"
        )
    return blocks


def shortest(manifest: SpeechManifest, count: int) -> SpeechManifest:
    """The `count` shortest clips of at least 1.5 s: commands, which is what devices hear, timed in little time."""
    clips = sorted((one for one in manifest.utterances if one.duration >= 1.5), key=lambda one: one.duration)
    return SpeechManifest(manifest.path, tuple(clips[:count]) or manifest.utterances[:count])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella build`."""
    parser.add_argument("model", help="'reference', a checkpoint folder, or a Hugging Face id")
    parser.add_argument("--target", required=True, help="a name of `prunella targets list`, or a .toml")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--drop", type=int, metavar="N", help="number of layers to cut")
    amount.add_argument(
        "--keep", type=float, metavar="SHARE", help="share of the layers to keep, such as 0.7"
    )
    amount.add_argument("--block", action="append", metavar="START:STOP", help="cut these layers")
    amount.add_argument(
        "--healed", metavar="HEALED", help="make the cut that this model was healed from, and export this one"
    )
    parser.add_argument(
        "--strategy", default="bridged", choices=STRATEGIES, help="how layers are chosen (default: bridged)"
    )
    parser.add_argument("--no-bridge", action="store_true", help="leave the gap as it is")
    parser.add_argument("--calibration", metavar="MANIFEST", help="speech to measure and fit on")
    parser.add_argument("--evaluation", metavar="MANIFEST", help="speech to judge on")
    parser.add_argument("--text", metavar="FILE", help="text for the second redundancy map")
    parser.add_argument(
        "--clips", type=int, default=200, metavar="N", help="calibration clips at most (default 200)"
    )
    parser.add_argument(
        "--heal", action="store_true", help="train what is left, with the full model as teacher"
    )
    parser.add_argument(
        "--heal-minutes", type=float, metavar="M", help="of training, over all sittings (default 15)"
    )
    parser.add_argument(
        "--heal-speech",
        action="append",
        metavar="MANIFEST",
        help="to train on; hf:NAME:SPLIT works too (default: the calibration speech)",
    )
    parser.add_argument("--no-baseline", action="store_true", help="no row for Whisper tiny.en")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder (default: out/MODEL-TARGET)")


def run(args: argparse.Namespace) -> int:
    """`prunella build`."""
    if (args.heal_minutes or args.heal_speech) and not args.heal:
        raise UsageError("--heal-minutes and --heal-speech are about healing: give --heal too")
    if args.healed and args.heal:
        raise UsageError("--healed names a model that is healed already: leave out --heal")
    named = (
        args.output if args.output is not None else f"out/{Path(args.model).name}-{Path(args.target).stem}"
    )
    check_name(named)
    _begun(check_output(named, inputs=[args.model, args.healed], replaces=False))
    _check_libraries(load_target(args.target).recipe, not args.no_baseline)
    out = Path(named)
    blocks = healed_blocks(args.model, args.healed) if args.healed else tuple(args.block or ())
    plan = BuildPlan(
        model=args.model,
        target=args.target,
        calibration=args.calibration or _example("clips/calibration.jsonl", "--calibration"),
        evaluation=args.evaluation or _example("clips/evaluation.jsonl", "--evaluation"),
        text=args.text or _optional_example("text/general.txt"),
        drop=args.drop,
        keep=args.keep,
        blocks=blocks,
        strategy=args.strategy,
        bridge=not args.no_bridge,
        clips=args.clips,
        heal_minutes=(args.heal_minutes or _HEAL_MINUTES) if args.heal else None,
        heal_speech=tuple(args.heal_speech or ()),
        healed=args.healed,
        baseline=not args.no_baseline,
    )
    _check_data(plan)
    model = load(args.model)
    engines = find_bundle_recipe(load_target(args.target).recipe).engines
    if "onnx" in engines:
        check_onnx_decoder(model.decoder.config)
    count, weights = len(model.layers), saved_bytes(model.decoder)
    del model
    if plan.blocks:
        size = sum(map(len, check_blocks([Block.parse(text) for text in plan.blocks], count)))
    else:
        size = layers_to_drop(count, drop=plan.drop, keep=plan.keep)
    if not (out / PLAN_NAME).exists():  # else some of it is there
        kept, bundle = 1 - size / count, ("onnx" in engines) + ("gguf" in engines) / 2
        check_space(
            out, weights * ((1 + kept) * bundle + 2 * kept)
        )  # float bundles; checkpoints cut and bridged
    report = build(plan, out)
    cut = json.loads((out / "pruned" / REPORT_NAME).read_text(encoding="utf-8"))
    sys.stdout.write(
        f"cut layers {' '.join(cut['blocks'])} of {cut['layers_before']} ({cut['strategy']})\n\n"
        f"{render_rows(report.rows, heading=report.heading)}\n\n"
        f"bundle     {report.bundle}\n"
        f"picture    {out / 'redundancy' / 'redundancy.png'}\n"
        f"your own   prunella transcribe {report.bundle} recording.wav\n"
    )
    return 0


def _begun(out: Path) -> dict[str, Any] | None:
    """What was written when the build in a folder began; None where it holds nothing yet.

    Raises:
        UsageError: it holds something else.
    """
    if not out.exists() or not contents(out):
        return None
    try:
        body = json.loads((out / PLAN_NAME).read_text(encoding="utf-8"))
        if "plan" in body:
            return dict(body)
    except (OSError, ValueError, TypeError):
        pass
    raise UsageError(f"{out} is not empty and holds no build: choose another folder with -o")


def _check_data(plan: BuildPlan) -> None:
    """What only a late step reads is read now, not after minutes."""
    if plan.clips < 1:
        raise UsageError(f"a sample of {plan.clips} clips leaves nothing: give 1 or more")
    read_manifest(plan.calibration)
    for path in (plan.evaluation, *plan.heal_speech):
        if not path.startswith("hf:"):
            read_manifest(path)
    if plan.text:
        read_lines(plan.text)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _file_digest(path: str) -> str:
    return path if path.startswith("hf:") else sha256(path)


def _differences(begun: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """Such as "--drop 6 there, 9 now"."""
    if begun is None:
        return "an earlier prunella began it"
    said = []
    for what in dict.fromkeys([*begun, *now]):
        there, here = begun.get(what), now.get(what)
        if there == here:
            continue
        if isinstance(there, bool) or isinstance(here, bool):
            said.append(f"{what} there, not now" if there else f"{what} now, not there")
        elif _is_digest(there) and _is_digest(here):
            said.append(f"the content of {what}" if what.startswith("--") else what)
        else:
            shown = [
                "none" if value is None else "a file" if _is_digest(value) else value
                for value in (there, here)
            ]
            said.append(f"{what} {shown[0]} there, {shown[1]} now")
    return "; ".join(said)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _measured_elsewhere(target: TargetProfile) -> str:
    """What stands above a table that was measured on a machine that is not the target; nothing where it is."""
    machine = read_machine()
    if not match_target(target, machine).fails:
        return ""
    here = machine.soc or (machine.device_tree or (machine.arch,))[0]
    return f"Measured on this machine ({here}), which is no {target.name}: RTF, tokens/s and peak MB are others there."


def _check_libraries(recipe: str, baseline: bool) -> None:
    """What only a late step imports is tried now, not after minutes."""
    require(recipe_modules(recipe), "the build")
    if "gguf" in find_bundle_recipe(recipe).engines:
        llama_library()
    if baseline:
        importable("faster_whisper", "the row of Whisper tiny.en")


def _example(name: str, option: str) -> str:
    found = _optional_example(name)
    if found is None:
        raise UsageError(
            f"this install has no example clips: give {option} MANIFEST (JSONL: audio_filepath, duration, text)"
        )
    return found


def _optional_example(name: str) -> str | None:
    path = _EXAMPLES / name
    return str(path) if path.is_file() else None


def _layers(system: str) -> int | None:
    path = Path(system)
    try:
        return open_bundle(path, verify=False).manifest.decoder.num_layers
    except PrunellaError:
        config = path / "decoder" / "config.json"
        return json.loads(config.read_text())["num_hidden_layers"] if config.is_file() else None


def _call(function: Callable[..., None], *args: str) -> Callable[[], None]:
    return lambda: function(*args)
