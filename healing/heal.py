"""Train a speech LLM on transcribed speech: heal what was pruned, or teach a new one to listen.

LoRA on decoder layers and the projector are trained together (`--stage ctc`: projector and encoder alone, against the
decoder's token embeddings). A run that was killed goes on from its last checkpoint in OUT.healing/ when the same
command is given again. `accelerate launch -m prunella heal ...` runs it on several devices.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.outputs import check_output, check_space
from prunella.healing.adapters import TrainableDecoder, lora_layers
from prunella.healing.clips import Clip, open_speech, tokenise
from prunella.healing.dev_set import DevSet
from prunella.healing.features import FeatureStore, module_digest
from prunella.healing.learner import Learner
from prunella.healing.plan import (
    COMPILE,
    PARTS,
    PRECISIONS,
    STAGES,
    Augmentation,
    HealingError,
    HealingPlan,
    fingerprint,
)
from prunella.healing.run_state import RunState, read_state, unshard
from prunella.healing.trainer import Trainer, make_accelerator
from prunella.healing.training_speed import CompiledLayers, choose_attention, choose_compile, choose_precision
from prunella.speech_llm.checkpoint import save_checkpoint, saved_bytes
from prunella.speech_llm.ctc_head import ENGLISH
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
    accelerator = make_accelerator()
    work = Path(work) if work is not None else None
    with_decoder = plan.stage == "transcript"
    if "encoder" in plan.parts and model.ctc_head is not None:
        model.remove_ctc_head()
        sys.stderr.write(
            "the CTC head knew the encoder as it was: left out; train another with --stage ctc-head\n"
        )
    if plan.stage == "ctc-head" and (plan.new_ctc_head or model.ctc_head is None):
        torch.manual_seed(plan.seed)
        model.add_ctc_head(ENGLISH)
    clips = tokenise(model, speech, plan.stage, slowest=plan.augmentation.speed)
    dev_clips = tokenise(model, dev, plan.stage) if dev else []
    state = _open_run(model, plan, teacher, [(one.clip.key, one.tokens) for one in clips], work)
    if not state.precision:
        # By the main process: machines of a cluster may measure differently. A resumed run keeps what it began with.
        state.precision = broadcast_object_list([choose_precision(plan.precision, accelerator.device)])[0]
    folder = Path(cache) if cache is not None else (work / "features" if work is not None else None)
    encode = "encoder" not in plan.parts
    store = FeatureStore(
        model,
        clips,
        plan.augmentation,
        plan.seed,
        encode=encode,
        precision=state.precision,
        folder=folder,
    )
    dev_set = None
    if dev_clips:
        still = FeatureStore(model, dev_clips, Augmentation.none(), plan.seed, encode=encode, folder=folder)
        dev_set = DevSet(model, still, plan.micro_positions)

    layers = lora_layers(plan.lora, model) if "decoder" in plan.parts else []
    model.requires_grad_(False)
    for part in ("projector", "encoder"):
        module = model.projector if part == "projector" else model.audio_encoder
        module.requires_grad_(part in plan.parts)
    model.audio_encoder.embed_positions.requires_grad_(False)
    if model.ctc_head is not None:
        model.ctc_head.requires_grad_(plan.stage == "ctc-head")
    decoder = compiled = None
    if with_decoder:
        whole = accelerator.distributed_type == DistributedType.FSDP  # which wants parameters of one dtype
        decoder = TrainableDecoder(model.decoder, layers, plan, "fp32" if whole else state.precision)
        model.decoder.set_attn_implementation(choose_attention(model.decoder, plan, accelerator.device))
        if choose_compile(plan, state.precision, accelerator.device) and not whole:
            compiled = CompiledLayers(model.layers)
    if plan.gradient_checkpointing and with_decoder:
        model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
    vocabulary: Sequence[int] = ()
    if plan.needs_alignment:
        vocabulary = sorted({token for one in [*clips, *dev_clips] for token in one.tokens[:-1]})
    for module in (model, teacher):
        if module is not None:
            module.to(accelerator.device)
    # Under autocast the projector's norms see bf16 with float32 weights: slower than fused, and meant.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    learner: Learner | None = None
    try:
        learner = Learner(
            model, plan, vocabulary=vocabulary, teacher=teacher, precision=state.precision, compiled=compiled
        )
        trainer = Trainer(
            accelerator,
            learner,
            plan,
            store,
            dev_set,
            state,
            work,
            progress=progress,
            on_step=on_step,
            rounded=decoder.rounded if decoder is not None else None,
        )
        state = trainer.run()
    finally:
        if learner is not None and accelerator.distributed_type == DistributedType.FSDP:
            unshard(learner)
        accelerator.free_memory()
        model.to("cpu")
        if decoder is not None:
            if plan.gradient_checkpointing:
                model.decoder.gradient_checkpointing_disable()
                model.decoder.disable_input_require_grads()  # which enabling switched on
            if work is not None and accelerator.is_main_process:
                with contextlib.suppress(OSError):
                    decoder.save_adapter(work / "adapter")
            decoder.merge()
        model.requires_grad_(False).eval()
    record = _record(plan, state, hours=sum(one.clip.seconds for one in clips) / 3600)
    past = model.config.provenance.get("healing", [])
    model.config = model.config.with_provenance(healing=[*past, record])
    return model


def _open_run(
    model: SpeechLLM, plan: HealingPlan, teacher: SpeechLLM | None, clips: Any, work: Path | None
) -> RunState:
    identity = plan.identity()
    digest = [module_digest(model.projector), module_digest(model.audio_encoder), module_digest(model.layers)]
    if teacher is not None:
        digest += [module_digest(teacher.projector), module_digest(teacher.layers)]
    state = read_state(work) if work is not None else None
    if state is None:
        return RunState(fingerprint=fingerprint(identity, digest, clips), identity=identity)
    # A setting that this prunella knows and the one that began the run did not had its default then.
    defaults = HealingPlan(steps=1).identity()
    changed = [key for key, value in identity.items() if state.identity.get(key, defaults[key]) != value]
    if changed or state.fingerprint != fingerprint(state.identity, digest, clips):
        what = (
            f"other settings ({', '.join(changed)})"
            if changed
            else "another model, another teacher or other speech"
        )
        raise HealingError(
            f"{work} holds a run with {what}: remove it to begin anew, or write to another folder"
        )
    # It may have been given more time since.
    state.finished = 0 < plan.patience <= state.bad_evaluations
    return state


def _record(plan: HealingPlan, state: RunState, hours: float) -> dict[str, Any]:
    return {
        "stage": plan.stage, "train": list(plan.parts), "lora": plan.lora, "rank": plan.rank, "steps": state.step,
        "minutes": round(state.seconds / 60, 2), "hours_of_speech": round(hours, 3), "precision": state.precision,
        "dev_wer": state.best_wer, "best_step": state.best_step if state.best_wer is not None else state.step,
        "seed": plan.seed, "run": state.fingerprint,
    }  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella heal`."""
    default = {f.name: f.default for f in fields(HealingPlan)}
    add = parser.add_argument
    add("model", metavar="MODEL", help="a checkpoint folder, 'reference', or a Hugging Face id")
    add("-o", "--out", required=True, metavar="OUT", help="folder of the healed checkpoint")
    add(
        "--speech",
        required=True,
        action="append",
        metavar="MANIFEST",
        help="JSONL, or hf:NAME:SPLIT (repeatable)",
    )
    add(
        "--dev",
        metavar="MANIFEST",
        help="speech whose WER (stage ctc-head: loss) chooses the best checkpoint",
    )
    add("--dev-clips", type=int, default=60, metavar="N", help="clips of it, drawn once (default 60)")
    add("--teacher", metavar="MODEL", help="the model before it was pruned: its distribution is learned too")
    add(
        "--stage",
        choices=STAGES,
        default="transcript",
        help="ctc: align projector and encoder with the tokens first; ctc-head: teach letters to a CTC head on the encoder, "
        "which the runner weighs beside the decoder",
    )
    add(
        "--train",
        default="projector,decoder",
        metavar="PARTS",
        help=f"of {','.join(PARTS)} (default projector,decoder)",
    )
    add(
        "--lora",
        default="all",
        metavar="LAYERS",
        help="all, receiving, or layers such as 0,3:7 (default all)",
    )
    add(
        "--rank",
        type=int,
        default=default["rank"],
        help="LoRA rank; 0: train the layers' own weights (default 32)",
    )
    add("--alpha", type=float, help="LoRA alpha (default: the rank)")
    add(
        "--learning-rate", type=float, dest="decoder_lr", default=default["decoder_lr"], help="of the decoder"
    )
    add("--projector-lr", type=float, default=default["projector_lr"], help="learning rate of the projector")
    add("--encoder-lr", type=float, default=default["encoder_lr"], help="learning rate of the encoder")
    add("--ctc-head-lr", type=float, default=default["ctc_head_lr"], help="learning rate of the CTC head")
    add(
        "--new-ctc-head",
        action="store_true",
        help="with --stage ctc-head: begin with a head that knows nothing",
    )
    add(
        "--ctc-weight",
        type=float,
        default=0.0,
        help="of a CTC loss beside the transcript's; audio embeddings near their tokens make drafts that decode faster",
    )
    add("--kl-weight", type=float, default=default["kl_weight"], help="share of the teacher in the loss")
    add(
        "--hidden-weight",
        type=float,
        default=0.0,
        help="of the distance to the teacher's hidden states behind what was cut (default 0)",
    )
    add("--label-smoothing", type=float, default=0.0)
    add("--steps", type=int, help="optimiser steps after which the run ends")
    add("--epochs", type=float, help="passes over the speech after which it ends")
    add("--minutes", type=float, help="minutes of training, over all sittings, after which it ends")
    add(
        "--batch-positions",
        type=int,
        default=default["batch_positions"],
        help="decoder positions of one step",
    )
    add(
        "--micro-positions", type=int, default=default["micro_positions"], help="of one forward pass (memory)"
    )
    add("--curriculum", action="store_true", help="the first epoch goes from short to long clips")
    add("--no-augmentation", action="store_true", help="every clip as it is, no noise-only clips, no masks")
    add("--variants", type=int, default=Augmentation.variants, help="augmented versions of each clip, cached")
    add(
        "--speed",
        type=float,
        default=Augmentation.speed,
        metavar="SHARE",
        help="by how much versions are faster or slower at most (default 0.1); more sounds like more speakers",
    )
    add("--precision", choices=PRECISIONS, default="auto", help="auto measures what is faster here")
    add(
        "--compile",
        choices=COMPILE,
        default="auto",
        help="the decoder's layers; auto: in long runs on a CPU in bf16",
    )
    add(
        "--base-bits",
        type=int,
        choices=(0, 4),
        default=0,
        help="4: QLoRA, where bitsandbytes supports the device",
    )
    add(
        "--rounding",
        type=int,
        default=0,
        metavar="BLOCK",
        help="train with 4-bit weights in blocks of so many inputs, for the int4 recipes (32)",
    )
    add("--gradient-checkpointing", action="store_true", help="less memory, a third more work")
    add(
        "--checkpoint-minutes",
        type=float,
        default=default["checkpoint_minutes"],
        help="at most this is lost (default 3)",
    )
    add("--checkpoint-steps", type=int, help="checkpoints by steps instead")
    add("--dev-minutes", type=float, default=default["dev_minutes"], help="between evaluations (default 10)")
    add("--dev-steps", type=int, help="evaluations by steps instead")
    add(
        "--patience",
        type=int,
        default=0,
        help="evaluations without improvement that end the run (default: never)",
    )
    add("--seed", type=int, default=0)
    add("--cache", type=Path, metavar="DIR", help="of audio features (default OUT.healing/features)")


def plan_from(args: argparse.Namespace) -> HealingPlan:
    """The plan that the arguments describe."""
    named = {f.name: getattr(args, f.name) for f in fields(HealingPlan) if hasattr(args, f.name)}
    named["train"] = tuple(part.strip() for part in args.train.split(","))
    named["augmentation"] = (
        Augmentation.none()
        if args.no_augmentation
        else replace(Augmentation(), variants=args.variants, speed=args.speed)
    )
    return HealingPlan(**named)


def run(args: argparse.Namespace) -> int:
    """`prunella heal`: train, write the checkpoint, and say on stdout what came of it (one JSON object)."""
    plan = plan_from(args)
    if args.dev_clips < 1:
        raise UsageError("--dev-clips must be 1 or more: leave --dev out to train without")
    out = check_output(args.out, inputs=[args.model, args.teacher, args.dev, *args.speech])
    work = out.with_name(out.name + ".healing")
    check_output(work, replaces=False)
    if args.cache is not None:
        check_output(args.cache, replaces=False)
    speech = open_speech(args.speech)
    dev = _drawn(open_speech([args.dev]), args.dev_clips) if args.dev else []
    student = load(args.model)
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


def _drawn(clips: Sequence[Clip], count: int) -> list[Clip]:
    """`count` clips, the same ones each time."""
    if count >= len(clips):
        return list(clips)
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))[:count]
    return [clips[index] for index in sorted(order.tolist())]
