"""Audio encoder and projector as llama.cpp's `mmproj` file, projector type `ultravox`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import CheckpointError
from prunella.quantize.gguf_files import ARCHITECTURE, FILE_TYPE, Value, write_gguf
from prunella.quantize.mmproj_storage import MMPROJ_FILE_TYPES, mmproj_storage
from prunella.speech_llm.model import SpeechLLM

_POSITIONS = 1_500  # llama.cpp always encodes 30 s
_WIDTH_THAT_STACKS_EIGHT = 1_280

# Of an encoder layer, by our names (Hugging Face's).
_LAYER_NAMES = {
    "self_attn_layer_norm": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "final_layer_norm": "ln2",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}
_NAMES = {
    "audio_encoder.conv1": "a.conv1d.1",
    "audio_encoder.conv2": "a.conv1d.2",
    "audio_encoder.embed_positions": "a.position_embd",
    "audio_encoder.layer_norm": "a.post_ln",
    "projector.ln_pre": "mm.a.norm_pre",
    "projector.linear_1": "mm.a.mlp.1",
    "projector.ln_mid": "mm.a.norm_mid",
    "projector.linear_2": "mm.a.mlp.2",
}


def write_mmproj(model: SpeechLLM, path: Path, *, kind: str = "F16") -> Path:
    """Write the audio half.

    Args:
        model: of the family `ultravox`, in float32.
        path: of the file; its folder exists.
        kind: F32, F16 or Q8_0, of the matrices; convolutions are F16 at most, positions, norms and biases F32.

    Raises:
        CheckpointError: llama.cpp would abort on this model, or run it wrongly.
    """
    check_runnable(model)
    if kind not in MMPROJ_FILE_TYPES:
        raise CheckpointError(f"no mmproj type '{kind}': choose one of {', '.join(MMPROJ_FILE_TYPES)}")
    keys = mmproj_keys(model) | {FILE_TYPE: MMPROJ_FILE_TYPES[kind]}
    write_gguf(path, keys, mmproj_tensors(model), mmproj_storage(kind))
    return path


def check_runnable(model: SpeechLLM) -> None:
    """Refuse what libmtmd's `ultravox` cannot do.

    Raises:
        CheckpointError: says which of its assumptions does not hold.
    """
    remedy = "take a target with the onnx engine alone"
    if model.config.family != "ultravox":
        raise CheckpointError(
            f"a projector of the kind '{model.config.family}' has no mmproj layout here: {remedy}"
        )
    config = model.own_config
    encoder = config.audio_encoder
    if config.stack_factor == 8 and encoder.d_model != _WIDTH_THAT_STACKS_EIGHT:
        raise CheckpointError(
            f"stack factor 8 with an encoder {encoder.d_model} wide aborts llama.cpp's whole process (it counts 187 "
            f"audio tokens and computes 188; only {_WIDTH_THAT_STACKS_EIGHT} wide comes out even): {remedy}, "
            "or train with a stack factor of 4, 5 or 10"
        )
    if encoder.max_source_positions < _POSITIONS:
        raise CheckpointError(
            f"llama.cpp always encodes 30 s, which needs {_POSITIONS} positions, the encoder has "
            f"{encoder.max_source_positions}: {remedy}"
        )
    if config.projector_norm_eps != 1e-6:
        raise CheckpointError(
            f"llama.cpp normalises in the projector with an epsilon of 1e-6, the model with {config.projector_norm_eps}: {remedy}"
        )


def mmproj_keys(model: SpeechLLM) -> dict[str, Value]:
    """All keys of the file but its type."""
    config = model.own_config
    encoder = config.audio_encoder
    norm: Any = model.audio_encoder.layer_norm
    return {
        ARCHITECTURE: "clip",
        "general.type": "mmproj",
        "general.name": str(
            model.config.provenance.get("name")
            or model.config.provenance.get("base_model")
            or model.config.family
        ),
        "clip.has_audio_encoder": True,
        "clip.has_vision_encoder": False,
        "clip.projector_type": "ultravox",
        "clip.audio.embedding_length": encoder.d_model,
        "clip.audio.feed_forward_length": encoder.encoder_ffn_dim,
        "clip.audio.block_count": encoder.encoder_layers,
        "clip.audio.attention.head_count": encoder.encoder_attention_heads,
        "clip.audio.attention.layer_norm_epsilon": float(norm.eps),
        "clip.audio.projection_dim": config.text_hidden_size,
        "clip.audio.num_mel_bins": encoder.num_mel_bins,
        "clip.audio.projector.stack_factor": config.stack_factor,
    }


def mmproj_tensors(model: SpeechLLM) -> dict[str, Float32]:
    """Name in the file → float32, in torch's order of dimensions."""
    tensors = {}
    for source, parameter in source_parameters(model).items():
        name = mmproj_name(source)
        # A bias of a convolution is added along the channels of (channels, frames).
        tensors[name] = (
            parameter[:, None] if name.startswith("a.conv1d") and parameter.ndim == 1 else parameter
        )
    return tensors


def source_parameters(model: SpeechLLM) -> dict[str, Float32]:
    """Parameters of encoder and projector by our names, without a copy."""
    return {
        f"{part}.{name}": parameter.detach().float().cpu().numpy()
        for part in ("audio_encoder", "projector")
        for name, parameter in getattr(model, part).state_dict().items()
    }


def mmproj_name(source: str) -> str:
    """Name in the file of one of our parameters.

    Raises:
        CheckpointError: the layout has no place for it.
    """
    module, _, suffix = source.rpartition(".")
    if module in _NAMES:
        return f"{_NAMES[module]}.{suffix}"
    part, _, rest = module.partition(".layers.")
    index, _, inner = rest.partition(".")
    if part == "audio_encoder" and inner in _LAYER_NAMES:
        return f"a.blk.{index}.{_LAYER_NAMES[inner]}.{suffix}"
    raise CheckpointError(f"llama.cpp's ultravox layout has no place for {source}: take the onnx engine")
