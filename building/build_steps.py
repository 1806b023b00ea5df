"""The steps of a build, in order: each makes one artefact, whole or not at all, from those before it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from prunella.benchmark.build_table import (
    BuildRow,
    measure_row,
    measured_elsewhere,
    render_rows,
    table_legend,
)
from prunella.building.artifacts import Artifacts
from prunella.building.build_plan import BuildPlan, claim_folder
from prunella.building.build_recipes import choose_recipes
from prunella.building.progress import Step, announced
from prunella.building.table_entries import TableEntry, table_entries
from prunella.device_runtime.base.extras import importable, require
from prunella.device_runtime.base.files import write_json, write_text
from prunella.device_runtime.base.outputs import check_output
from prunella.device_runtime.bundle import open_bundle
from prunella.device_runtime.engines.llama_library import llama_library
from prunella.device_runtime.engines.providers import unannounced
from prunella.evaluation.manifest import read_manifest
from prunella.evaluation.systems import BASELINE
from prunella.export.export import export_float
from prunella.needs import recipe_modules
from prunella.pruning.analyze import analyze, save_analysis
from prunella.pruning.blocks import Block
from prunella.pruning.calibration import (
    Calibration,
    read_lines,
    speech_batches,
    speech_calibration,
    text_batches,
)
from prunella.pruning.picture import draw_maps
from prunella.pruning.prune import REPORT_NAME, layers_to_drop, prune, save_pruned
from prunella.pruning.prune_vocabulary import VocabularyReport, prune_vocabulary
from prunella.pruning.redundancy import load_maps
from prunella.pruning.selection import Evidence, choose_blocks
from prunella.pruning.vocabulary import read_texts
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.quantize.bundle_writer import requantize
from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.load import load, resolve
from prunella.speech_llm.model import SpeechLLM
from prunella.targets.profile import TargetProfile, load_target

TEXT_LINES = 40  # of the text: about as many positions as 70 short clips


@dataclass(frozen=True)
class BuildReport:
    """The rows, and the folder of the bundle that was asked for."""

    rows: tuple[BuildRow, ...]
    bundle: Path
    # Above the table, where it was not measured on the target.
    heading: str = ""
    legend: str = ""  # below it


class Build:
    """One build in one folder. `run` goes through the steps and skips those whose artefact is there."""

    def __init__(self, plan: BuildPlan, out: Path) -> None:
        self.plan, self.at = plan, Artifacts(out)
        self.target: TargetProfile = load_target(plan.target)
        self.recipes = choose_recipes(plan.model, self.target, plan.recipe)
        self.heading = measured_elsewhere(self.target)
        self._model: SpeechLLM | None = None
        self._calibration: Calibration | None = None

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
        check_output(self.at.out, replaces=False)
        check_libraries(self.recipes.asked, self.plan.baseline)
        claim_folder(self.plan, self.at)
        with unannounced(bool(self.heading)):
            for step in announced(self.steps()):
                if not step.artefact.exists():
                    step.make()
        rows = tuple(BuildRow(**json.loads(self.at.row(one.id).read_text())) for one in self.entries())
        write_json(self.at.report, {"plan": asdict(self.plan), "rows": [asdict(row) for row in rows]})
        legend = table_legend(healed=bool(self.plan.healed or self.plan.heals))
        table = render_rows(rows, markdown=True, heading=self.heading)
        write_text(self.at.table, f"{table}\n\n{legend}\n")
        return BuildReport(rows, self.at.bundle("pruned", self.recipes.asked), self.heading, legend)

    def entries(self) -> tuple[TableEntry, ...]:
        """The lines of the table."""
        return table_entries(self.plan, self.at, self.recipes)

    def steps(self) -> tuple[Step, ...]:
        """All steps, in an order in which each finds what it needs."""
        at = self.at
        steps = [
            Step("measuring redundancy", at.maps, (), self._analyze, weight=6),
            Step("choosing a block, cutting and bridging", at.pruned, (at.maps,), self._prune, weight=4),
            Step("saving the cut without its bridge", at.cut, (at.pruned,), self._cut),
        ]
        if self.plan.heals:
            steps.append(
                Step(
                    "healing", at.healed, (at.pruned,), self._heal, seconds=60 * (self.plan.heal_minutes or 0)
                )
            )
        for kind, checkpoint in (("full", resolve(self.plan.model)), ("pruned", self._smaller)):
            whole = at.bundle(kind, self.recipes.float)
            for recipe in self.recipes.all:
                make, source, weight = (
                    (self._export, checkpoint, 1.5)
                    if recipe == self.recipes.float
                    else (self._requantize, whole, 1.0)
                )
                step = partial(make, kind, recipe)
                steps.append(
                    Step(f"exporting {kind} as {recipe}", at.bundle(kind, recipe), (source,), step, weight)
                )
        for one in self.entries():
            needs = () if one.system == BASELINE else (Path(one.system),)
            weight = 4.0 if one.id.endswith("-pytorch") else 2.0
            make = partial(self._evaluate, one)
            steps.append(Step(f"evaluating {one.name}", at.row(one.id), needs, make, weight))
        return tuple(steps)

    def _analyze(self) -> None:
        manifest = read_manifest(self.plan.calibration).sample(self.plan.clips)
        text = None
        if self.plan.text:
            lines = read_lines(self.plan.text)[:TEXT_LINES]
            text = text_batches(self.model.decoder, self.model.tokenizer, lines)
        analysis = analyze(self.model, speech=speech_batches(self.model, manifest.utterances), text=text)
        save_analysis(analysis, self.at.redundancy, Path(self.plan.model).name)

    def _prune(self) -> None:
        blocks = tuple(Block.parse(text) for text in self.plan.blocks)
        strategy = "block" if blocks else self.plan.strategy
        if not blocks:
            size = layers_to_drop(len(self.model.layers), drop=self.plan.drop, keep=self.plan.keep)
            evidence = Evidence(self.model.decoder, load_maps(self.at.maps)["speech"], self.calibration)
            blocks = choose_blocks(evidence, size, strategy)
        pruned, report = prune(
            self.model, blocks, calibration=self.calibration, bridge=self.plan.bridge, strategy=strategy
        )
        if self.plan.cuts_vocabulary:  # behind the layers, which are chosen by all that the model could say
            pruned, tokens = self._fewer_tokens(pruned)
            report = replace(report, vocabulary=tokens)
        draw_maps(load_maps(self.at.maps), self.at.picture, Path(self.plan.model).name, cut=blocks)
        save_pruned(pruned, report, self.at.pruned)

    def _fewer_tokens(self, model: SpeechLLM) -> tuple[SpeechLLM, VocabularyReport]:
        plan = self.plan
        texts = read_texts(plan.keep_vocabulary or ())
        return prune_vocabulary(model, texts, keep_tokens=plan.keep_tokens, lossless=plan.lossless)

    def _cut(self) -> None:
        cut, report = prune(self.model, self._blocks(), calibration=None, strategy=self.plan.strategy)
        save_pruned(cut, report, self.at.cut)

    def _heal(self) -> None:
        # Imported here: a build without healing needs neither peft nor accelerate.
        from prunella.healing.clips import open_speech
        from prunella.healing.heal import heal
        from prunella.healing.plan import HealingPlan

        healed = heal(
            load(self.at.pruned),
            HealingPlan(minutes=self.plan.heal_minutes),
            open_speech(self.plan.heal_speech or [self.plan.calibration]),
            # Its tokens are chosen by the same texts, and so are the same.
            teacher=self._fewer_tokens(self.model)[0] if self.plan.cuts_vocabulary else self.model,
            work=self.at.healing,
            progress=True,
        )
        save_checkpoint(healed, self.at.healed)

    def _export(self, kind: str, recipe: str) -> None:
        model = self.model if kind == "full" else load(self._smaller)
        facts = {"name": self._name(kind)}
        export_float(model, self.target, self.at.bundle(kind, recipe), provenance=facts, recipe=recipe)

    def _requantize(self, kind: str, recipe: str) -> None:
        whole = open_bundle(self.at.bundle(kind, self.recipes.float))
        requantize(whole, recipe, self.at.bundle(kind, recipe))

    def _evaluate(self, entry: TableEntry) -> None:
        self._model = self._calibration = None  # no longer needed, and memory is
        row = measure_row(entry.name, entry.system, read_manifest(self.plan.evaluation))
        write_json(self.at.row(entry.id), asdict(row))

    @property
    def _smaller(self) -> Path:
        """The checkpoint that is exported beside the full model."""
        if self.plan.healed:
            return resolve(self.plan.healed)
        return self.at.healed if self.plan.heals else self.at.pruned

    def _blocks(self) -> tuple[Block, ...]:
        report = json.loads((self.at.pruned / REPORT_NAME).read_text(encoding="utf-8"))
        return tuple(Block.parse(text) for text in report["blocks"])

    def _name(self, kind: str) -> str:
        """Never that of a shipped model for a cut made here: it names the block."""
        name = Path(self.plan.model).name
        if kind == "full":
            return name
        if self.plan.healed:
            return Path(self.plan.healed).name
        return f"{name}-cut-{'+'.join(map(str, self._blocks()))}" + ("-healed" if self.plan.heals else "")


def check_libraries(recipe: str, baseline: bool) -> None:
    """What only a late step imports is tried now, not after minutes.

    Raises:
        EngineError: a library is not installed, or cannot be loaded.
    """
    require(recipe_modules(recipe), "the build")
    if "gguf" in find_bundle_recipe(recipe).engines:
        llama_library()
    if baseline:
        importable("faster_whisper", "the row of Whisper tiny.en")
