"""Audio encoder and projector to one graph, `audio_encoder.onnx`, for audio of any length."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from prunella.device_runtime.bundle import HOP_LENGTH
from prunella.quantize.graph_file import save_graph
from prunella.speech_llm.families.family import projected
from prunella.speech_llm.model import SpeechLLM

AUDIO_ENCODER_NAME = "audio_encoder.onnx"
_OPSET = 20  # 23 has a fused Attention, which the older runtimes that devices have do not know
_LONGEST_FRAMES = 3_000  # 30 s: no piece of audio is longer
_EXAMPLE_FRAMES = 64
_SCOPES = "pkg.torch.onnx.name_scopes"


class _EncoderAndProjector(nn.Module):
    def __init__(self, model: SpeechLLM) -> None:
        super().__init__()
        self.audio_encoder = model.audio_encoder
        self.projector = model.projector
        self.ctc_head = model.ctc_head
        self.config = model.config

    def forward(
        self, log_mel: torch.Tensor, valid_frames: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        encoded = self.audio_encoder(log_mel, valid_frames)
        if valid_frames is None:
            letters = (self.ctc_head(encoded),) if self.ctc_head is not None else ()
            return (projected(self.projector, encoded, None), *letters)
        frames = self.config.encoder_frames(valid_frames)
        counts = [self.config.audio_tokens(frames)]
        letters = ()
        if self.ctc_head is not None:
            letters = (self.ctc_head(encoded, frames),)
            counts.append(self.ctc_head.frames.count(frames))
        return (projected(self.projector, encoded, frames), *letters, torch.cat(counts))


def export_audio_encoder(model: SpeechLLM, out: Path) -> Path:
    """Write `audio_encoder.onnx`, float32.

    Input: `log_mel` (1, width, frames) float32, both as the model's `FeatureSpec` says, and where it says
    that not all are audio's, `valid_frames` (1,) int64. Output: `audio_embeddings` (1, audio_tokens, hidden) float32, of a
    CTC head `ctc_log_probabilities` (1, ctc_frames, classes) float32, and with `valid_frames` also `valid_rows` (1 or 2,)
    int64, how many rows of each are audio's. Matrix products are named after their layer
    (`audio_encoder.layers.0.fc1`), so that recipes can choose among them.

    Returns:
        The path of the file.
    """
    spec = model.config.audio.features
    step = math.lcm(spec.frame_multiple, max(1, spec.multiple // HOP_LENGTH))
    longest = -(-_LONGEST_FRAMES // spec.stack_step)
    whole_windows = step >= _LONGEST_FRAMES
    # Of several tokens: a number that is 1 in the example would be 1 in the graph.
    steps = 1 if whole_windows else max(4, -(-_EXAMPLE_FRAMES // step))
    example = torch.zeros(1, spec.width, steps * step)
    shapes: dict[str, Any] = {"log_mel": None}
    if not whole_windows:
        shapes["log_mel"] = {2: step * torch.export.Dim("steps", min=2, max=longest // step)}
    arguments: tuple[torch.Tensor, ...] = (example,)
    outputs = ["audio_embeddings", "ctc_log_probabilities"][: 1 if model.ctc_head is None else 2]
    if spec.valid != "all":
        arguments += (torch.tensor([example.shape[2] - 1]),)
        shapes["valid_frames"] = None
        outputs.append("valid_rows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _EncoderAndProjector(model).eval(),
            arguments,
            input_names=list(shapes),
            output_names=outputs,
            dynamic_shapes=shapes,
            dynamo=True,
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns nothing
    graph = program.model_proto
    _name_dimensions(graph, whole_windows)
    _name_after_layers(graph)
    return save_graph(graph, out / AUDIO_ENCODER_NAME)


def _name_dimensions(model: onnx.ModelProto, whole_windows: bool) -> None:
    names = {"audio_embeddings": "audio_tokens", "ctc_log_probabilities": "ctc_frames"}
    if not whole_windows:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "frames"
        for output in model.graph.output:
            if output.name in names:
                output.type.tensor_type.shape.dim[1].dim_param = names[output.name]
    del model.graph.value_info[:]


def _name_after_layers(model: onnx.ModelProto) -> None:
    """Name nodes after the module they come from, and drop the exporter's notes (they quote this machine's paths)."""
    taken: dict[str, int] = {}
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
        names = [name for name in re.findall(r"'([^']*)'", scopes) if name]
        # The last scope is the operator itself; the one before it is the innermost module.
        scope = names[-2] if len(names) > 1 else "graph"
        base = f"{scope}/{node.op_type}"
        taken[base] = taken.get(base, 0) + 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.graph.doc_string = ""
