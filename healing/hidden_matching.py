"""Distillation inside the decoder: behind a cut, the hidden states should be what they were before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from prunella.device_runtime.base.errors import UsageError
from prunella.healing.pass_inputs import PassInputs
from prunella.pruning.history import blocks_between, pruned_blocks
from prunella.speech_llm.batches import IGNORE
from prunella.speech_llm.model import SpeechLLM


class HiddenMatching:
    """Compares what the receiving layers of the student get with what the same layers of the teacher get.

    Args:
        student: pruned; its provenance names the blocks.
        teacher: the model before the cut, or before several.

    Raises:
        UsageError: the student was not pruned, or only its first layers were, before which there is nothing to train;
            or it was pruned from another model.
    """

    def __init__(self, student: SpeechLLM, teacher: SpeechLLM) -> None:
        blocks = blocks_between(teacher, student)
        if pruned_blocks(student) and not blocks:
            raise UsageError(
                "--hidden-weight compares hidden states with those before a cut, and the teacher is not what this model "
                "was cut from: give that one, or leave --hidden-weight out"
            )
        removed = 0
        self._layers: list[
            tuple[int, int]
        ] = []  # a layer of the student, and the teacher's that it stands for
        self._views = student.view, teacher.view
        self._student: dict[int, torch.Tensor] = {}
        self._teacher: dict[int, torch.Tensor] = {}
        for block in blocks:
            before = block.start - removed - 1
            removed += len(block)
            if before >= 0:
                self._layers.append((before, block.stop - 1))
        if not self._layers:
            raise UsageError(
                "--hidden-weight compares hidden states behind a cut, and this model has none: "
                "give a pruned checkpoint, or leave it out"
            )

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within it a pass of either model leaves what `distance` compares; behind it the models are as they were."""
        with ExitStack() as stack:
            stack.callback(self._student.clear)
            stack.callback(self._teacher.clear)
            student, teacher = self._views
            for place, (mine, its) in enumerate(self._layers):
                stack.callback(student.watch_output(mine, partial(self._student.__setitem__, place)).remove)
                stack.callback(teacher.watch_output(its, partial(self._teacher.__setitem__, place)).remove)
            yield

    def distance(self, inputs: PassInputs) -> torch.Tensor:
        """After both have run while `recording`: squared distance relative to the teacher's state, averaged over the
        positions of a clip and counted once for each of its tokens, so that it adds up over processes as the loss does
        → () float32."""
        place = torch.arange(inputs.labels.shape[1], device=inputs.labels.device)
        scored = inputs.labels != IGNORE
        length = (place * scored).amax(1) + 1
        inside = place < length[:, None]
        per_clip = scored.sum(1) * inputs.weights / length
        total = torch.zeros((), device=inputs.labels.device)
        for number in range(len(self._layers)):
            mine, its = self._student[number].float(), self._teacher[number].float()
            off = (mine - its).square().sum(-1) / (its.square().sum(-1) + 1e-6)
            total = total + ((off * inside).sum(1) * per_clip).sum()
        return total / len(self._layers)
