"""The whole path in one resumable command: measure, prune, bridge, export, quantise, evaluate, and one table at the end.

    prunella build reference --target x86-cpu --drop 3 -o out/reference-3
    prunella build reference --target x86-cpu --healed reference-pruned -o out/demo
    prunella build Qwen/Qwen3-ASR-0.6B-hf --target raspberry-pi-5 --fit --heal

Every step leaves one artefact, whole or not at all; the same command goes on after the last one that is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from prunella.benchmark.build_table import render_rows
from prunella.building.artifacts import Artifacts
from prunella.building.build_plan import BuildPlan, begun
from prunella.building.build_steps import Build, BuildReport, check_libraries
from prunella.building.fit import proposal
from prunella.building.fit_choice import MAX_WER_INCREASE, fit_model
from prunella.device_runtime.base.common_options import MANIFEST_HELP, add_output
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.outputs import check_name, check_output, check_space
from prunella.evaluation.manifest import read_manifest
from prunella.export.export import check_decoder
from prunella.pruning.blocks import Block, check_blocks
from prunella.pruning.calibration import read_lines
from prunella.pruning.history import blocks_between
from prunella.pruning.prune import REPORT_NAME, layers_to_drop
from prunella.pruning.prune_vocabulary import add_vocabulary_arguments, cuts_vocabulary
from prunella.pruning.selection import STRATEGIES
from prunella.pruning.vocabulary import read_texts
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.speech_llm.load import resolve
from prunella.speech_llm.model_facts import read_facts
from prunella.targets.profile import load_target
from prunella.targets.shapes import read_shapes

_EXAMPLES = Path(__file__).parents[1] / "examples"
_HEAL_MINUTES = 15.0


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
    blocks = tuple(map(str, blocks_between(read_facts(model), read_facts(healed))))
    if not blocks:
        raise UsageError(
            f"{healed} was not cut from {model}: name the model that it was pruned from, or build with --drop"
        )
    return blocks


def fitted(model: str, target: str, max_wer_increase: float | None = None) -> tuple[int, str]:
    """Layers to cut and the recipe that `prunella fit` proposes; what it says of them goes to stderr.

    Raises:
        UsageError: nothing fits, or the whole model does.
    """
    shapes, profile = read_shapes(resolve(model)), load_target(target)
    bound = MAX_WER_INCREASE if max_wer_increase is None else max_wer_increase
    report = fit_model(shapes, profile, max_wer_increase=bound)
    if report.proposed is None:
        raise UsageError(f"{proposal(report)}: choose a smaller model, or --drop what you will")
    found = report.proposed.prediction
    if found.layers == shapes.decoder.layers:
        raise UsageError(f"nothing need be cut: {proposal(report)}")
    sys.stderr.write(f"{proposal(report)}\n")
    return shapes.decoder.layers - found.layers, found.recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella build`."""
    parser.add_argument(
        "model", metavar="MODEL", help="'reference', a checkpoint folder, or a Hugging Face id"
    )
    needed = parser.add_argument_group("what most runs need")
    needed.add_argument(
        "--target", required=True, metavar="TARGET", help="a name of `prunella targets list`, or a .toml"
    )
    amount = needed.add_mutually_exclusive_group(required=True)
    amount.add_argument("--drop", type=int, metavar="N", help="number of layers to cut")
    amount.add_argument(
        "--keep", type=float, metavar="SHARE", help="share of the layers to keep, such as 0.7"
    )
    amount.add_argument("--block", action="append", metavar="START:STOP", help="cut these layers")
    amount.add_argument(
        "--healed", metavar="HEALED", help="make the cut that this model was healed from, and export this one"
    )
    amount.add_argument(
        "--fit", action="store_true", help="cut and store as `prunella fit` proposes for the target"
    )
    needed.add_argument(
        "--max-wer-increase",
        type=float,
        metavar="P",
        help=f"for --fit: most that word errors may be expected to rise, in percent (default: {MAX_WER_INCREASE:g})",
    )
    add_output(needed, "folder of the build (default: out/MODEL-TARGET)", required=False)
    cut = parser.add_argument_group("the cut")
    cut.add_argument(
        "--strategy",
        default="bridged",
        choices=STRATEGIES,
        help="how layers are chosen (default: %(default)s)",
    )
    cut.add_argument("--no-bridge", action="store_true", help="leave the gap as it is")
    add_vocabulary_arguments(parser)
    speech = parser.add_argument_group("speech")
    speech.add_argument(
        "--calibration",
        metavar="MANIFEST",
        help=f"speech to measure and fit on ({MANIFEST_HELP}; default: the example clips)",
    )
    speech.add_argument(
        "--evaluation", metavar="MANIFEST", help="speech to judge on (likewise; default: the example clips)"
    )
    speech.add_argument("--text", metavar="FILE", help="text for the second redundancy map")
    speech.add_argument(
        "--clips", type=int, default=200, metavar="N", help="calibration clips at most (default: %(default)s)"
    )
    healing = parser.add_argument_group("healing")
    healing.add_argument(
        "--heal", action="store_true", help="train what is left, with the full model as teacher"
    )
    healing.add_argument(
        "--heal-minutes", type=float, metavar="M", help="of training, over all sittings (default: 15)"
    )
    healing.add_argument(
        "--heal-speech",
        action="append",
        metavar="MANIFEST",
        help="to train on; hf:NAME:SPLIT works too (repeatable; default: the calibration speech)",
    )
    parser.add_argument_group("the table").add_argument(
        "--no-baseline", action="store_true", help="no row for Whisper tiny.en"
    )


def plan_from(args: argparse.Namespace) -> BuildPlan:
    """The plan that the arguments describe.

    Raises:
        UsageError: they contradict each other, or there are no example clips and none are named.
    """
    if (args.heal_minutes or args.heal_speech) and not args.heal:
        raise UsageError("--heal-minutes and --heal-speech are about healing: give --heal too")
    if args.max_wer_increase is not None and not args.fit:
        raise UsageError("--max-wer-increase is about --fit: give it too")
    if args.healed and args.heal:
        raise UsageError("--healed names a model that is healed already: leave out --heal")
    if args.healed and cuts_vocabulary(args):
        raise UsageError(
            "--healed names a model whose tokens are chosen already: leave out --keep-vocabulary and --lossless"
        )
    drop, recipe = (
        (args.drop, None) if not args.fit else fitted(args.model, args.target, args.max_wer_increase)
    )
    return BuildPlan(
        model=args.model,
        target=args.target,
        calibration=args.calibration or _example("clips/calibration.jsonl", "--calibration"),
        evaluation=args.evaluation or _example("clips/evaluation.jsonl", "--evaluation"),
        text=args.text or _optional_example("text/general.txt"),
        drop=drop,
        recipe=recipe,
        keep=args.keep,
        blocks=healed_blocks(args.model, args.healed) if args.healed else tuple(args.block or ()),
        strategy=args.strategy,
        bridge=not args.no_bridge,
        clips=args.clips,
        heal_minutes=(args.heal_minutes or _HEAL_MINUTES) if args.heal else None,
        heal_speech=tuple(args.heal_speech or ()),
        healed=args.healed,
        keep_vocabulary=tuple(map(str, args.keep_vocabulary)) if args.keep_vocabulary is not None else None,
        keep_tokens=args.keep_tokens,
        lossless=args.lossless,
        baseline=not args.no_baseline,
    )


def run(args: argparse.Namespace) -> int:
    """`prunella build`."""
    default = f"out/{Path(args.model).name}-{Path(args.target).stem}"
    named = default if args.out is None else args.out
    check_name(named)
    begun(Artifacts(check_output(named, inputs=[args.model, args.healed], replaces=False)))
    out, plan = Path(named), plan_from(args)
    check_libraries(plan.recipe or load_target(args.target).recipe, not args.no_baseline)
    at = Artifacts(out)
    _check_data(plan)
    _check_model(plan, at)
    report = build(plan, out)
    cut = json.loads((at.pruned / REPORT_NAME).read_text(encoding="utf-8"))
    sys.stdout.write(
        f"cut layers {' '.join(cut['blocks'])} of {cut['layers_before']} ({cut['strategy']})\n\n"
        f"{render_rows(report.rows, heading=report.heading)}\n\n"
        f"{report.legend}\n\n"
        f"bundle     {report.bundle}\n"
        f"picture    {at.picture}\n"
        f"your own   prunella transcribe {report.bundle} recording.wav\n"
    )
    return 0


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
    read_texts(plan.keep_vocabulary or ())


def _check_model(plan: BuildPlan, at: Artifacts) -> None:
    """What would fail after minutes, seen in the model's configuration."""
    facts = read_facts(plan.model)
    target = load_target(plan.target)
    recipe = plan.recipe or target.recipe
    check_decoder(facts.decoder, recipe, target.max_context)
    count = facts.num_layers
    if plan.blocks:
        size = sum(map(len, check_blocks([Block.parse(text) for text in plan.blocks], count)))
    else:
        size = layers_to_drop(count, drop=plan.drop, keep=plan.keep)
    if not at.plan.exists():  # else some of it is there
        # Float bundles of both models, the smaller one's checkpoints cut and bridged.
        engines = find_bundle_recipe(recipe).engines
        kept, bundle = 1 - size / count, ("onnx" in engines) + ("gguf" in engines) / 2
        check_space(at.out, facts.decoder_bytes * ((1 + kept) * bundle + 2 * kept))


def _example(name: str, option: str) -> str:
    found = _optional_example(name)
    if found is None:
        raise UsageError(f"this install has no example clips: give {option} MANIFEST ({MANIFEST_HELP})")
    return found


def _optional_example(name: str) -> str | None:
    path = _EXAMPLES / name
    return str(path) if path.is_file() else None
