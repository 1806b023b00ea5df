"""The `gguf/` folder of a float bundle: written, and compared with the model before anyone gets it."""

from __future__ import annotations

from pathlib import Path

from prunella.export.gguf_decoder import write_decoder
from prunella.export.gguf_gate import GateReport, gate
from prunella.export.gguf_mmproj import check_runnable, write_mmproj
from prunella.quantize.gguf_recipes import GgufRecipe
from prunella.speech_llm.model import SpeechLLM


def export_gguf_files(
    model: SpeechLLM, out: Path, recipe: GgufRecipe, *, max_context: int = 2_048
) -> GateReport:
    """Write `decoder-KIND.gguf` and `mmproj-KIND.gguf` into folder `out`.

    Args:
        model: in float32.
        recipe: F32, F16 or BF16.
        max_context: positions that will be used.

    Raises:
        CheckpointError: llama.cpp does not run this model, or would run it wrongly.
        ExportError: the files are not what the model says.
        EngineError: llama.cpp is not installed, so that nothing could be compared.
    """
    check_runnable(model)  # before the larger file is written
    out.mkdir(parents=True)
    decoder = write_decoder(
        model, out / f"decoder-{recipe.name}.gguf", kind=recipe.name, max_context=max_context
    )
    mmproj = write_mmproj(model, out / f"mmproj-{recipe.mmproj}.gguf", kind=recipe.mmproj)
    return gate(model, decoder, recipe.name, mmproj, recipe.mmproj, max_context=max_context)
