"""Audio encoder and projector to one graph, `audio_encoder.onnx`, for audio of any length."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from prunella.quantize.graph_file import save_graph
from prunella.speech_llm.model import SpeechLLM

AUDIO_ENCODER_NAME = "audio_encoder.onnx"
_OPSET = 20  # 23 has a fused Attention, which the older runtimes that devices have do not know
_SCOPES = "pkg.torch.onnx.name_scopes"


class _EncoderAndProjector(nn.Module):
    def __init__(self, model: SpeechLLM) -> None:
        super().__init__()
        self.audio_encoder = model.audio_encoder
        self.projector = model.projector
        self.ctc_head = model.ctc_head

    def forward(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoded = self.audio_encoder(log_mel)
        letters = (self.ctc_head(encoded),) if self.ctc_head is not None else ()
        return (self.projector(encoded), *letters)


def export_audio_encoder(model: SpeechLLM, out: Path) -> Path:
    """Write `audio_encoder.onnx`, float32.

    Input: `log_mel` (1, num_mel_bins, frames) float32, frames a whole number of audio tokens. Output:
    `audio_embeddings` (1, audio_tokens, hidden) float32, and of a CTC head `ctc_log_probabilities` (1, ctc_frames, classes)
    float32. Matrix products are named after their layer
    (`audio_encoder.layers.0.fc1`), so that recipes can choose among them.

    Returns:
        The path of the file.
    """
    frames_per_token = model.config.mel_frames_per_token
    longest = model.config.longest_mel_frames // frames_per_token
    tokens = torch.export.Dim("audio_tokens", min=2, max=longest)
    example = torch.zeros(1, model.config.audio_encoder.num_mel_bins, 4 * frames_per_token)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _EncoderAndProjector(model).eval(),
            (example,),
            input_names=["log_mel"],
            output_names=["audio_embeddings", "ctc_log_probabilities"][: 1 if model.ctc_head is None else 2],
            dynamic_shapes={"log_mel": {2: frames_per_token * tokens}},
            dynamo=True,
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns nothing
    graph = program.model_proto
    _name_dimensions(graph)
    _name_after_layers(graph)
    return save_graph(graph, out / AUDIO_ENCODER_NAME)


def _name_dimensions(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "frames"
    for output, name in zip(model.graph.output, ("audio_tokens", "ctc_frames"), strict=False):
        output.type.tensor_type.shape.dim[1].dim_param = name
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
