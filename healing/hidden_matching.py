"""Distillation inside the decoder: behind a cut, the hidden states should be what they were before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prunella.device_runtime.errors import UsageError
from prunella.healing.adapters import pruned_blocks
from prunella.speech_llm.batches import IGNORE
from prunella.speech_llm.model import SpeechLLM

if TYPE_CHECKING:
    from prunella.healing.learner import PassInputs


class HiddenMatching:
    """Compares what the receiving layers of the student get with what the same layers of the teacher get.

    Args:
        student: pruned; its provenance names the blocks.
        teacher: the model before the cut.

    Raises:
        UsageError: the student was not pruned, or only its first layers were, before which there is nothing to train.
    """

    def __init__(self, student: SpeechLLM, teacher: SpeechLLM) -> None:
        removed = 0
        self._student: list[torch.Tensor | None] = []
        self._teacher: list[torch.Tensor | None] = []
        for block in sorted(pruned_blocks(student)):
            before = block.start - removed - 1
            removed += len(block)
            if before >= 0:
                self._watch(student.layers[before], self._student)
                self._watch(teacher.layers[block.stop - 1], self._teacher)
        if not self._student:
            raise UsageError(
                "--hidden-weight compares hidden states behind a cut, and this model has none: "
                "give a pruned checkpoint, or leave it out"
            )

    def distance(self, inputs: PassInputs) -> torch.Tensor:
        """After both have run: squared distance relative to the teacher's state, averaged over the positions of a clip
        and counted once for each of its tokens, so that it adds up over processes as the loss does → () float32."""
        place = torch.arange(inputs.labels.shape[1], device=inputs.labels.device)
        scored = inputs.labels != IGNORE
        length = (place * scored).amax(1) + 1
        inside = place < length[:, None]
        per_clip = scored.sum(1) * inputs.weights / length
        total = torch.zeros((), device=inputs.labels.device)
        for number, (mine, its) in enumerate(zip(self._student, self._teacher, strict=True)):
            assert mine is not None and its is not None
            off = (mine.float() - its.float()).square().sum(-1) / (its.float().square().sum(-1) + 1e-6)
            total = total + ((off * inside).sum(1) * per_clip).sum()
            self._student[number] = self._teacher[number] = None
        return total / len(self._student)

    @staticmethod
    def _watch(layer: torch.nn.Module, into: list[torch.Tensor | None]) -> None:
        place = len(into)
        into.append(None)

        def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
            into[place] = output[0] if isinstance(output, tuple) else output

        layer.register_forward_hook(keep)
