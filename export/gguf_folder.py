"""The `gguf/` folder of a float bundle: written, and compared with the model before anyone gets it."""

from __future__ import annotations

import logging
from pathlib import Path

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import MmprojSpec
from prunella.export.gguf_decoder import write_decoder
from prunella.export.gguf_gate import GateReport, gate
from prunella.export.gguf_mmproj import write_mmproj
from prunella.export.mmproj_layouts import find_layout
from prunella.quantize.gguf_recipes import GgufRecipe
from prunella.speech_llm.model import SpeechLLM

_LOG = logging.getLogger(__name__)


def export_gguf_files(
    model: SpeechLLM, out: Path, recipe: GgufRecipe, *, max_context: int = 2_048
) -> tuple[GateReport, MmprojSpec]:
    """Write `decoder-KIND.gguf` into folder `out`, and `mmproj-KIND.gguf` where llama.cpp has a layout for the audio half.

    Args:
        model: in float32.
        recipe: F32, F16 or BF16.
        max_context: positions that will be used.

    Returns:
        What was compared, and what the manifest says of the audio half.

    Raises:
        CheckpointError: llama.cpp does not run this decoder, or would run it wrongly.
        ExportError: the files are not what the model says.
        EngineError: llama.cpp is not installed, so that nothing could be compared.
    """
    spec = mmproj_spec(model)
    out.mkdir(parents=True)
    decoder = write_decoder(
        model, out / f"decoder-{recipe.name}.gguf", kind=recipe.name, max_context=max_context
    )
    mmproj = None
    if spec.projector:
        mmproj = write_mmproj(model, out / f"mmproj-{recipe.mmproj}.gguf", kind=recipe.mmproj)
    else:
        _LOG.warning("no audio half for llama.cpp: %s", spec.note)
    return gate(model, decoder, recipe.name, mmproj, recipe.mmproj, max_context=max_context), spec


def mmproj_spec(model: SpeechLLM) -> MmprojSpec:
    """Which audio half llama.cpp has for a model; its note says why there is none."""
    try:
        layout = find_layout(model)
    except CheckpointError as error:
        return MmprojSpec(note=str(error))
    return MmprojSpec(layout.projector_type, layout.note, layout.around)
