"""Feeds a training run: which clips come next, their audio being read while the step before is trained."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from prunella.device_runtime.base.errors import AudioError
from prunella.healing.features import FeatureStore, Loaded
from prunella.healing.order import Lengths, epoch_steps, split_step
from prunella.healing.pass_inputs import PassInputs, pass_inputs
from prunella.healing.plan import HealingPlan


@dataclass(frozen=True)
class Step:
    """This process's share of one optimiser step, and what it weighs over all processes.

    passes: clips of each forward pass with their features on the way; an empty pass is a filler, which the other
    processes wait for. `tokens` and `clips` are those of the whole global batch.
    """

    epoch: int
    place: int
    passes: tuple[tuple[tuple[int, Future[Loaded | None]], ...], ...]
    fillers: tuple[bool, ...]
    seconds: float
    tokens: int
    clips: int


class Feeder:
    """Steps of a run in order, the same for any number of processes.

    Args:
        store: the clips.
        plan: batch sizes, seed, curriculum.
        process, processes: which share is this one's.
        ahead: steps whose audio is read while the one before is trained. None on a CPU: a reader takes one of the cores
            whose threads meet after every product, and all of them wait.
    """

    def __init__(
        self, store: FeatureStore, plan: HealingPlan, process: int = 0, processes: int = 1, ahead: int = 1
    ) -> None:
        self.store, self.plan, self.process, self.processes = store, plan, process, processes
        self._ahead = ahead
        self._unreadable: set[int] = set()

    def steps_in_epoch(self, epoch: int) -> int:
        """How many steps an epoch has."""
        return len(self._epoch(epoch)[0])

    def steps(self, epoch: int, place: int, reader: ThreadPoolExecutor) -> Iterator[Step]:
        """Endlessly, from step `place` of `epoch` on."""
        ahead: list[Step] = []
        while True:
            steps, lengths = self._epoch(epoch)
            for number in range(place, len(steps)):
                ahead.append(self._step(epoch, number, steps[number], lengths, reader))
                if len(ahead) > self._ahead:
                    yield ahead.pop(0)
            epoch, place = epoch + 1, 0

    def inputs(self, step: Step, number: int) -> PassInputs:
        """Inputs of forward pass `number`, on the CPU."""
        store = self.store
        clips = []
        wait(loading for _, loading in step.passes[number])
        for index, loading in step.passes[number]:
            loaded = loading.result()
            weight = 0.0 if loaded is None or step.fillers[number] else 1.0
            if loaded is None:
                ready = store.blank()
            else:
                done = store.finish(loaded, index, store.variant(index, step.epoch))
                ready = replace(done, rows=store.masked(done.rows, index, step.epoch))
            clips.append(store.pass_clip(index, ready, weight))
        return pass_inputs(store.model, clips, encoded=store.encode)

    def _epoch(self, epoch: int) -> tuple[list[list[int]], Lengths]:
        plan = self.plan
        lengths = self.store.positions(epoch)
        steps = epoch_steps(
            lengths,
            plan.batch_positions,
            plan.micro_positions,
            plan.seed,
            epoch,
            sorted_order=plan.curriculum and epoch == 0,
        )
        return steps, lengths

    def _step(
        self, epoch: int, place: int, step: Sequence[int], lengths: Lengths, reader: ThreadPoolExecutor
    ) -> Step:
        store = self.store
        groups = split_step(step, lengths, self.plan.micro_positions, self.processes)[self.process]
        passes = [
            tuple((index, reader.submit(self._read, index, epoch)) for index in group or step[:1])
            for group in groups
        ]
        # Where the decoder does not run, nobody learns end tokens and names of languages.
        taught = store.tokens if self.plan.with_decoder else store.said
        return Step(
            epoch=epoch,
            place=place,
            passes=tuple(passes),
            fillers=tuple(not group for group in groups),
            seconds=sum(store.seconds(index, store.variant(index, epoch)) for index in step),
            tokens=max(1, sum(len(taught(index)) for index in step)),
            clips=len(step),
        )

    def _read(self, index: int, epoch: int) -> Loaded | None:
        try:
            return self.store.load(index, self.store.variant(index, epoch))
        except AudioError as error:
            if index not in self._unreadable:
                self._unreadable.add(index)
                sys.stderr.write(f"skipped {self.store.clips[index].clip.where}: {error}\n")
            return None
