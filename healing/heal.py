"""Train a speech LLM on transcribed speech: heal what was pruned, or teach a new one to listen.

LoRA on decoder layers and the projector are trained together (`--stage ctc`: projector and encoder alone, against the
decoder's token embeddings). A run that was killed goes on from its last checkpoint in OUT.healing/ when the same
command is given again. `accelerate launch -m prunella heal ...` runs it on several devices.
Where tcmalloc is installed (Debian's libtcmalloc-minimal4) the program starts itself again with it; PRUNELLA_TCMALLOC=0 in
the environment keeps it from that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from prunella.device_runtime.base.common_options import MANIFEST_HELP, add_output, add_spoken_language
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.outputs import check_output, check_space
from prunella.healing.clips import Clip, open_speech
from prunella.healing.estimate import estimate, render_estimate, shapes_of
from prunella.healing.healing_run import HealingRun
from prunella.healing.option_fields import add_options, option_values
from prunella.healing.plan import (
    LOSS,
    MACHINE,
    NEEDED,
    SAVED,
    SPEECH,
    TRAINED,
    Augmentation,
    HealingPlan,
)
from prunella.healing.trainer import make_accelerator
from prunella.healing.training_speed import choose_precision, matmul_rate
from prunella.speech_llm.checkpoint import save_checkpoint, saved_bytes
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM


def heal(
    model: SpeechLLM,
    plan: HealingPlan,
    speech: Sequence[Clip],
    *,
    dev: Sequence[Clip] = (),
    teacher: SpeechLLM | None = None,
    work: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> SpeechLLM:
    """Train `model` in place.

    Args:
        model: float32, as `load` gives it. Its decoder has its LoRA merged at the end: an ordinary model again.
        plan: what is trained, how, and until when.
        speech: clips to learn from (`open_speech`).
        dev: clips whose WER (of a CTC head their loss) chooses the best checkpoint; none: the last one.
        teacher: the model before it was pruned, whose distribution over the transcripts is learned too.
        work: folder of the run's checkpoints; a run found there goes on, and counts its time and steps.
        cache: folder of the features (default: in `work`); runs may share it.
        progress: a bar on stderr.
        on_step: called after every step with its number and its loss (nats a token, over the whole global batch).

    Returns:
        `model`, with an entry added to `provenance["healing"]`.

    Raises:
        HealingError: the loss was not finite, a checkpoint could not be written, or `work` holds another run.
        ManifestError: no clip can be used.
        UsageError: layers, teacher or parts that do not fit the model.
    """
    run = HealingRun(
        model,
        plan,
        speech,
        dev=dev,
        teacher=teacher,
        work=None if work is None else Path(work),
        cache=None if cache is None else Path(cache),
    )
    run.prepare()
    try:
        run.train(progress=progress, on_step=on_step)
    finally:
        run.finish()
    past = model.config.provenance.get("healing", [])
    model.config = model.config.with_provenance(healing=[*past, run.record()])
    return model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella heal`: those of a `HealingPlan`, and what it is applied to."""
    parser.usage = "%(prog)s MODEL --speech MANIFEST -o OUT (--minutes M | --epochs N | --steps N) [options]"
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint folder, 'reference', or a Hugging Face id"
    )
    groups = {
        title: parser.add_argument_group(title) for title in (NEEDED, TRAINED, LOSS, SPEECH, MACHINE, SAVED)
    }
    needed = groups[NEEDED].add_argument
    add_output(groups[NEEDED], "folder of the healed checkpoint")
    needed(
        "--speech",
        required=True,
        action="append",
        metavar="MANIFEST",
        help=f"transcribed speech ({MANIFEST_HELP}), or hf:NAME:SPLIT (repeatable)",
    )
    needed(
        "--dev",
        metavar="MANIFEST",
        help="speech whose WER (stage ctc-head: loss) chooses the best checkpoint",
    )
    needed(
        "--teacher", metavar="MODEL", help="the model before it was pruned: its distribution is learned too"
    )
    add_spoken_language(groups[SPEECH])
    groups[SPEECH].add_argument(
        "--no-augmentation", action="store_true", help="every clip as it is, no noise-only clips, no masks"
    )
    groups[SAVED].add_argument(
        "--dev-clips",
        type=int,
        default=60,
        metavar="N",
        help="clips of --dev, drawn once (default: %(default)s)",
    )
    groups[MACHINE].add_argument(
        "--estimate",
        action="store_true",
        help="say what the run would take, in memory and hours, by formulas that are printed, and end",
    )
    add_options(groups, Augmentation)
    add_options(groups, HealingPlan)
    groups[SPEECH].add_argument(
        "--cache", type=Path, metavar="DIR", help="of audio features (default: OUT.healing/features)"
    )


def plan_from(args: argparse.Namespace) -> HealingPlan:
    """The plan that the arguments describe."""
    augmentation = (
        Augmentation.none() if args.no_augmentation else Augmentation(**option_values(args, Augmentation))
    )
    return HealingPlan(augmentation=augmentation, **option_values(args, HealingPlan))


def run(args: argparse.Namespace) -> int:
    """`prunella heal`: train, write the checkpoint, and say on stdout what came of it (one JSON object)."""
    plan = plan_from(args)
    if args.estimate:
        return _say_estimate(args, plan)
    if args.dev_clips < 1:
        raise UsageError("--dev-clips must be 1 or more: leave --dev out to train without")
    out = check_output(args.out, inputs=[args.model, args.teacher, args.dev, *args.speech])
    work = out.with_name(out.name + ".healing")
    check_output(work, replaces=False)
    if args.cache is not None:
        check_output(args.cache, replaces=False)
    speech = open_speech(args.speech, language=args.language)
    dev = _drawn(open_speech([args.dev], language=args.language), args.dev_clips) if args.dev else []
    student = load(args.model)
    student.known_language(args.language)
    check_space(out, saved_bytes(student))
    model = heal(
        student,
        plan,
        speech,
        dev=dev,
        teacher=load(args.teacher) if args.teacher else None,
        work=work,
        cache=args.cache,
        progress=True,
    )
    if make_accelerator().is_main_process:
        save_checkpoint(model, out)
        sys.stdout.write(json.dumps({"out": str(args.out), **model.config.provenance["healing"][-1]}) + "\n")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _say_estimate(args: argparse.Namespace, plan: HealingPlan) -> int:
    device = make_accelerator().device
    precision = choose_precision(plan.precision, device)
    shapes = shapes_of(args.model)
    teacher = shapes_of(args.teacher) if args.teacher else None
    clips = open_speech(args.speech, language=args.language)
    rate = matmul_rate(torch.bfloat16 if precision == "bf16" else torch.float32, device)
    found = estimate(shapes, plan, precision=precision, teacher=teacher)
    hours = sum(clip.seconds for clip in clips) / 3_600
    sys.stdout.write(render_estimate(shapes, found, rate, hours, plan) + "\n")
    return 0


def _drawn(clips: Sequence[Clip], count: int) -> list[Clip]:
    """`count` clips, the same ones each time."""
    if count >= len(clips):
        return list(clips)
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))[:count]
    return [clips[index] for index in sorted(order.tolist())]
