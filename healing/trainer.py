"""The training loop: on accelerate, resumable at any moment, its loss weighted over the whole global batch."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tqdm
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, broadcast_object_list, gather_object

from prunella.device_runtime.base.errors import UsageError
from prunella.healing.dev_set import DevScore, DevSet
from prunella.healing.features import FeatureStore
from prunella.healing.feeder import Feeder, Step
from prunella.healing.learner import Learner
from prunella.healing.plan import HealingError, HealingPlan
from prunella.healing.quantization_aware import RoundedWeights
from prunella.healing.run_state import (
    BEST,
    LAST,
    RunState,
    optimizer_tensors,
    restore,
    trainable_tensors,
    write_run,
)

_READERS = 2  # threads


def make_accelerator() -> Accelerator:
    """One process, or what `accelerate launch` started."""
    # Nothing in the learner's buffers changes, so DDP need not send them round at every step.
    quiet = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[quiet])
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UsageError(
            "only version 2 of FSDP is supported: set fsdp_version: 2 in the accelerate configuration"
        )
    return accelerator


@dataclass(frozen=True)
class TrainingJob:
    """What a `Trainer` does with a learner."""

    plan: HealingPlan
    # The training clips.
    store: FeatureStore
    # Their WER (of a CTC head their loss) chooses the best checkpoint and may end the run.
    dev: DevSet | None = None
    # Folder of the checkpoints; None keeps none.
    work: Path | None = None
    # A bar on stderr.
    progress: bool = False
    # Called with the number and the loss of every step.
    on_step: Callable[[int, float], None] | None = None
    # Frozen weights that are kept rounded.
    rounded: RoundedWeights | None = None


class Trainer:
    """Trains a `Learner` in place.

    Args:
        accelerator: where and with whom.
        learner: what is trained.
        job: on what, how, and until when.
        state: where the run is.
    """

    def __init__(self, accelerator: Accelerator, learner: Learner, job: TrainingJob, state: RunState) -> None:
        self.accelerator, self.job, self.state = accelerator, job, state
        self.plan = plan = job.plan
        self.losses: list[float] = []
        self.feeder = Feeder(
            job.store,
            plan,
            accelerator.process_index,
            accelerator.num_processes,
            ahead=0 if accelerator.device.type == "cpu" else 1,
        )
        optimizer = torch.optim.AdamW(
            _groups(learner, plan), betas=(0.9, plan.beta2), weight_decay=0.0, fused=True
        )
        self.wrapped, self.optimizer = accelerator.prepare(learner, optimizer)
        self.learner: Learner = accelerator.unwrap_model(self.wrapped)
        self._parameters = [p for p in self.wrapped.parameters() if p.requires_grad]
        self._began = self._saved = self._evaluated = time.monotonic()
        self._before = state.seconds
        if job.work is not None and (job.work / LAST).is_dir():
            restore(self.wrapped, self.optimizer.optimizer, job.work / LAST)

    def run(self) -> RunState:
        """Train until the plan ends, then put the best weights into the learner.

        Raises:
            HealingError: loss or gradient not finite, or a checkpoint cannot be written; the last good one is intact.
        """
        state = self.state
        total = self._total_steps()
        bar = tqdm.tqdm(
            total=1_000,
            initial=int(1_000 * self._done(total)),
            file=sys.stderr,
            disable=None if self.job.progress and self.accelerator.is_main_process else True,
            bar_format="{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}",
        )
        self.wrapped.train()
        with bar, ThreadPoolExecutor(_READERS) as reader:
            steps = self.feeder.steps(state.epoch, state.step_in_epoch, reader)
            while not state.finished and (done := self._agree(self._done(total))) < 1.0:
                self._set_rates(done)
                self._round(again=not self.losses)
                self.losses.append(self._step(next(steps)))
                if self.job.on_step is not None:
                    self.job.on_step(self.state.step, self.losses[-1])
                if self.accelerator.is_main_process:
                    self._show(bar, total)
                self._evaluate_and_save(final=False)
            if not state.finished:
                state.finished = True
                self._evaluate_and_save(final=True)
        if self.job.work is not None and (self.job.work / BEST).is_dir():
            restore(self.wrapped, None, self.job.work / BEST)
        return state

    def _round(self, *, again: bool) -> None:
        """At the same steps whether or not the run was stopped in between, and once more when it goes on."""
        if self.job.rounded is not None and (again or self.state.step % self.plan.rounding_steps == 0):
            self.job.rounded.refresh()

    def _step(self, step: Step) -> float:
        accelerator, state = self.accelerator, self.state
        # A function of the place in the run, so that there is no random state to restore.
        torch.manual_seed(hash((self.plan.seed, state.step, accelerator.process_index)) % 2**31)
        sums = torch.zeros(2, device=accelerator.device)
        for number in range(len(step.passes)):
            inputs = self.feeder.inputs(step, number).to(accelerator.device)
            last = number == len(step.passes) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                parts = self.wrapped(inputs)
                loss = parts[0] / step.tokens + self.plan.scale_weight * parts[1] / step.clips
                # DDP and FSDP average gradients over processes; the sums above are to be added up.
                accelerator.backward(loss * accelerator.num_processes)
            sums += parts.detach()
            state.positions += inputs.input_ids.numel()
        norm = accelerator.clip_grad_norm_(self._parameters, self.plan.max_grad_norm)
        sums = accelerator.reduce(sums, "sum")
        loss = float(sums[0]) / step.tokens
        if not (torch.isfinite(sums).all() and torch.isfinite(torch.as_tensor(norm))):
            kept = f"{self.job.work / LAST} is intact" if self.job.work else "nothing was saved"
            raise HealingError(
                f"the loss is not finite at step {state.step + 1} (loss {loss:.3g}, gradient {float(norm):.3g}); {kept}: "
                "remove it and train with a lower --learning-rate, or in --precision fp32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        state.epoch, state.step_in_epoch = step.epoch, step.place + 1
        state.speech_seconds += step.seconds
        state.seconds = self._seconds()
        return loss

    def _evaluate_and_save(self, *, final: bool) -> None:
        plan, state, now = self.plan, self.state, time.monotonic()
        evaluate = self.job.dev is not None and (
            final
            or (plan.dev_steps is not None and state.step % plan.dev_steps == 0)
            or (plan.dev_steps is None and now - self._evaluated > 60 * plan.dev_minutes)
        )
        if plan.checkpoint_steps is not None:
            save = state.step % plan.checkpoint_steps == 0
        else:
            save = now - self._saved > 60 * plan.checkpoint_minutes
        evaluate = evaluate and not (final and state.history and state.history[-1]["step"] == state.step)
        evaluate, save = self._agree((evaluate, save or evaluate or final))
        if evaluate:
            self._evaluate()
            self._evaluated = time.monotonic()
        if save and self.job.work is not None:
            state.seconds = self._seconds()
            self._write(LAST, optimizer=True)
            self._saved = time.monotonic()

    def _evaluate(self) -> None:
        assert self.job.dev is not None
        accelerator, state = self.accelerator, self.state
        if accelerator.distributed_type == DistributedType.FSDP:
            score = self.job.dev.score(
                self.learner
            )  # every forward is a collective: all decode the same clips
        else:
            mine = self.job.dev.score(self.learner, accelerator.process_index, accelerator.num_processes)
            score = sum(gather_object([mine]), DevScore())
        wer, loss = score.words.rate, score.loss / max(score.tokens, 1)
        state.seconds = self._seconds()
        state.history.append(
            {"step": state.step, "seconds": round(state.seconds, 1), "dev_wer": wer, "dev_loss": loss,
             "speech_hours": state.speech_seconds / 3600, "loss": self._recent_loss()}
        )  # fmt: skip
        # A CTC head only weighs in: what counts is how likely it finds the truth, not what it would read alone.
        counts = "dev_loss" if self.plan.stage == "ctc-head" else "dev_wer"
        best = next((row[counts] for row in state.history if row["step"] == state.best_step), math.inf)
        if state.best_wer is None or state.history[-1][counts] < best:
            state.best_wer, state.best_step, state.bad_evaluations = wer, state.step, 0
            if self.job.work is not None:
                self._write(BEST, optimizer=False)
        else:
            state.bad_evaluations += 1
            state.finished |= 0 < self.plan.patience <= state.bad_evaluations
        if accelerator.is_main_process and self.job.progress:
            tqdm.tqdm.write(
                f"step {state.step}: dev WER {100 * wer:.1f} % (best {100 * state.best_wer:.1f} at {state.best_step}), "
                f"dev loss {loss:.3f}, loss {self._recent_loss():.3f}",
                file=sys.stderr,
            )

    def _write(self, name: str, *, optimizer: bool) -> None:
        weights = trainable_tensors(self.wrapped)
        moments = optimizer_tensors(self.wrapped, self.optimizer.optimizer) if optimizer else {}
        if self.accelerator.is_main_process and self.job.work is not None:
            write_run(self.job.work, name, self.state, weights, moments)
        self.accelerator.wait_for_everyone()

    def _total_steps(self) -> int | None:
        limits = [self.plan.steps] if self.plan.steps is not None else []
        if self.plan.epochs is not None:
            limits.append(max(1, round(self.plan.epochs * self.feeder.steps_in_epoch(0))))
        return min(limits) if limits else None

    def _done(self, total: int | None) -> float:
        """Share of the run that lies behind, 0 to 1."""
        shares = [self.state.step / total] if total else []
        if self.plan.minutes is not None:
            shares.append(self._seconds() / (60 * self.plan.minutes))
        return min(max(shares), 1.0)

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _set_rates(self, done: float) -> None:
        """Linear warm-up, then linearly down to nothing."""
        warmup = self.plan.warmup
        share = min(
            (done + 1e-3) / warmup if warmup > 0 else 1.0, (1.0 - done) / max(1.0 - warmup, 1e-9), 1.0
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * max(share, 0.0)

    def _agree(self, value: Any) -> Any:
        """The main process's value: clocks differ, decisions must not."""
        if self.accelerator.num_processes == 1:
            return value
        return broadcast_object_list([value])[0]

    def _recent_loss(self) -> float:
        recent = self.losses[-20:]
        return sum(recent) / max(len(recent), 1)

    def _show(self, bar: tqdm.tqdm, total: int | None) -> None:
        state = self.state
        bar.n = int(1_000 * self._done(total))
        wer = "" if state.best_wer is None else f", dev WER {100 * state.history[-1]['dev_wer']:.1f} %"
        pace = state.speech_seconds / max(state.seconds, 1e-9)
        bar.set_postfix_str(
            f"step {state.step}, loss {self._recent_loss():.3f}{wer}, {pace:.1f} speech-hours/hour"
        )


def _groups(learner: Learner, plan: HealingPlan) -> list[dict[str, object]]:
    """Parameter groups with the peak learning rate of each part."""
    peaks = {
        "projector": plan.projector_lr,
        "alignment": plan.projector_lr,
        "encoder": plan.encoder_lr,
        "spelling": plan.ctc_head_lr,
    }
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(name.split(".")[0], []).append(parameter)
    return [
        {"params": parameters, "lr": 0.0, "peak": peaks.get(part, plan.decoder_lr)}
        for part, parameters in groups.items()
    ]
