"""An importance matrix from calibration speech: which inputs of each matrix carry energy, so that 4 bits go there first."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.utils.hooks import RemovableHandle

from prunella.export.gguf_families import find_family
from prunella.export.gguf_tensors import stored_tensors
from prunella.quantize.gguf_importance import Importance, write_importance
from prunella.speech_llm.batches import DecoderBatch
from prunella.speech_llm.model import SpeechLLM


def measure_importance(
    model: SpeechLLM, batches: Iterable[DecoderBatch], *, max_context: int = 2_048
) -> Importance:
    """Sum of squares of what each column of the decoder's matrices is multiplied with, over all true positions.

    Args:
        model: in float32.
        batches: teacher-forced speech, for example `pruning.calibration.speech_batches`.

    Raises:
        CheckpointError: the decoder is not of a family that is written to GGUF.
    """
    decoder = model.decoder
    tensors = stored_tensors(decoder, find_family(decoder.config, max_context))
    modules = dict(decoder.named_modules())
    energy, positions = _InputEnergy(), 0
    with ExitStack() as watched:
        for name, stored in tensors.items():
            module = modules[stored.source.rpartition(".")[0]]
            if stored.source.endswith(".weight") and isinstance(module, torch.nn.Linear):
                watched.callback(energy.watch(name, module).remove)
        if decoder.config.tie_word_embeddings:  # the table is multiplied as the head
            watched.callback(energy.watch("token_embd.weight", model.view.head).remove)
        for batch in batches:
            energy.counted = batch.is_token
            positions += int(batch.is_token.sum())
            with torch.inference_mode():
                decoder(
                    inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, use_cache=False
                )
    return Importance({name: values.float().numpy() for name, values in energy.sums.items()}, positions)


class _InputEnergy:
    """Sums of squares of what modules are given, by column: `sums` has (columns,) float64 a name."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        # (batch, length) bool: the positions of the pass that is running which count. Hooks are not told of it.
        self.counted = torch.empty(0)

    def watch(self, name: str, module: torch.nn.Module) -> RemovableHandle:
        """Add up what `module` is given from now on, under `name`."""

        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0][self.counted].double().square().sum(0)
            self.sums[name] = self.sums[name] + rows if name in self.sums else rows

        return module.register_forward_pre_hook(hook)


def export_importance(model: SpeechLLM, batches: Iterable[DecoderBatch], folder: Path) -> int:
    """Measure, and write what `requantize` finds beside the decoder in `folder`. Returns the number of positions."""
    importance = measure_importance(model, batches)
    write_importance(importance, folder)
    return importance.positions
