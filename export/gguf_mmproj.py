"""Audio encoder and projector as llama.cpp's `mmproj` file, in the layout that its projector type has (`mmproj_layouts`)."""

from __future__ import annotations

from pathlib import Path

import torch

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import CheckpointError
from prunella.export.mmproj_layouts import encoder_facts, find_layout
from prunella.quantize.gguf_files import ARCHITECTURE, FILE_TYPE, Value, write_gguf
from prunella.quantize.mmproj_storage import MMPROJ_FILE_TYPES, mmproj_storage
from prunella.speech_llm.model import SpeechLLM


def write_mmproj(model: SpeechLLM, path: Path, *, kind: str = "F16") -> Path:
    """Write the audio half.

    Args:
        model: in float32.
        path: of the file; its folder exists.
        kind: F32, F16 or Q8_0, of the matrices; convolutions are F16 at most, positions, norms and biases F32.

    Raises:
        CheckpointError: llama.cpp has no layout for this model, would abort on it, or run it wrongly.
    """
    find_layout(model)
    if kind not in MMPROJ_FILE_TYPES:
        raise CheckpointError(f"no mmproj type '{kind}': choose one of {', '.join(MMPROJ_FILE_TYPES)}")
    keys = mmproj_keys(model) | {FILE_TYPE: MMPROJ_FILE_TYPES[kind]}
    write_gguf(path, keys, mmproj_tensors(model), mmproj_storage(kind))
    return path


def mmproj_keys(model: SpeechLLM) -> dict[str, Value]:
    """All keys of the file but its type."""
    layout, encoder = find_layout(model), encoder_facts(model)
    keys: dict[str, Value] = {
        ARCHITECTURE: "clip",
        "general.type": "mmproj",
        "general.name": str(
            model.config.provenance.get("name")
            or model.config.provenance.get("base_model")
            or model.config.family
        ),
        "clip.has_audio_encoder": True,
        "clip.has_vision_encoder": False,
        "clip.projector_type": layout.projector_type,
        "clip.audio.embedding_length": encoder.width,
        "clip.audio.feed_forward_length": encoder.feed_forward,
        "clip.audio.block_count": encoder.layers,
        "clip.audio.attention.head_count": encoder.heads,
        "clip.audio.attention.layer_norm_epsilon": encoder.norm_eps,
        "clip.audio.projection_dim": model.decoder.config.get_text_config().hidden_size,
        "clip.audio.num_mel_bins": encoder.num_mel_bins,
    }
    if layout.stacked:
        keys["clip.audio.projector.stack_factor"] = model.config.frames_per_token
    return keys | dict(layout.keys(model))


def mmproj_tensors(model: SpeechLLM) -> dict[str, Float32]:
    """Name in the file → float32, in torch's order of dimensions."""
    return {
        name: values.reshape(stored_shape(name, values.shape)) for name, values in named_values(model).items()
    }


def stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A bias of a convolution is added along the channels of (channels, frames), or (channels, bins, frames)."""
    if name.endswith(".bias") and name.startswith("a.conv1d"):
        return (*shape, 1)
    return (*shape, 1, 1) if name.endswith(".bias") and name.startswith("a.conv2d") else shape


def named_values(model: SpeechLLM) -> dict[str, Float32]:
    """Name in the file → values as the model has them, without a copy."""
    layout = find_layout(model)
    sources = {} if layout.whole else source_parameters(model)
    named = {layout.name(source): values for source, values in sources.items()}
    return named | {name: _array(tensor) for name, tensor in layout.tensors(model).items()}


def source_parameters(model: SpeechLLM) -> dict[str, Float32]:
    """Parameters of encoder and projector by our names, those of the modules around a stock part left out."""
    return {
        f"{part}.{name.removeprefix(wrapper)}": _array(parameter)
        for part, wrapper in (("audio_encoder", "tower."), ("projector", "projector."))
        for name, parameter in getattr(model, part).state_dict().items()
    }


def _array(tensor: torch.Tensor) -> Float32:
    values: Float32 = tensor.detach().float().cpu().numpy()
    return values
