"""An importance matrix from calibration speech: which inputs of each matrix carry energy, so that 4 bits go there first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from prunella.export.gguf_decoder import tensor_names
from prunella.export.gguf_families import find_family
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
    names = tensor_names(decoder, find_family(decoder.config, max_context))
    modules = dict(decoder.named_modules())
    sums: dict[str, torch.Tensor] = {}
    inside: list[torch.Tensor] = []
    handles = []

    def watch(name: str, module: torch.nn.Module) -> None:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0][inside[-1]].double()
            sums[name] = sums.get(name, torch.zeros(rows.shape[-1], dtype=torch.float64)) + rows.square().sum(
                0
            )

        handles.append(module.register_forward_pre_hook(hook))

    for source, name in names.items():
        module = modules[source.rpartition(".")[0]]
        if source.endswith(".weight") and isinstance(module, torch.nn.Linear):
            watch(name, module)
    if decoder.config.tie_word_embeddings:  # the table is multiplied as the head
        watch("token_embd.weight", model.view.head)
    positions = 0
    try:
        for batch in batches:
            inside.append(batch.is_token)
            positions += int(batch.is_token.sum())
            with torch.inference_mode():
                decoder(
                    inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, use_cache=False
                )
            inside.clear()
    finally:
        for handle in handles:
            handle.remove()
    return Importance({name: values.float().numpy() for name, values in sums.items()}, positions)


def export_importance(model: SpeechLLM, batches: Iterable[DecoderBatch], folder: Path) -> int:
    """Measure, and write what `requantize` finds beside the decoder in `folder`. Returns the number of positions."""
    importance = measure_importance(model, batches)
    write_importance(importance, folder)
    return importance.positions
