"""llama.cpp's `granite_speech`: Conformer and Q-Former of Granite Speech, under its names and in the shapes that it takes for granted.

Read in llama.cpp's `tools/mtmd` (`models/granite-speech.cpp`, `mtmd-audio.cpp`), as llama-cpp-python 0.3.36 has it.
"""

from __future__ import annotations

from typing import Any

import torch

from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm.model import SpeechLLM

_PLAIN = {"input_linear": "a.input_projection", "out": "a.enc_ctc_out", "out_mid": "a.enc_ctc_out_mid"}
_LAYER = {
    "ff1.pre_norm": "ffn_norm",
    "ff1.up_proj": "ffn_up",
    "ff1.down_proj": "ffn_down",
    "attn.pre_norm": "ln1",
    "attn.to_q": "attn_q",
    "attn.to_out": "attn_out",
    "conv.norm": "norm_conv",
    "conv.up_conv": "conv_pw1",
    "conv.depth_conv.conv": "conv_dw",
    "conv.down_conv": "conv_pw2",
    "ff2.pre_norm": "ffn_norm_1",
    "ff2.up_proj": "ffn_up_1",
    "ff2.down_proj": "ffn_down_1",
    "post_norm": "ln2",
}
_Q_FORMER = {
    "attention.attention.query": "self_attn_q",
    "attention.attention.key": "self_attn_k",
    "attention.attention.value": "self_attn_v",
    "attention.output.dense": "self_attn_out",
    "attention.output.LayerNorm": "self_attn_norm",
    "crossattention.attention.query": "cross_attn_q",
    "crossattention.attention.key": "cross_attn_k",
    "crossattention.attention.value": "cross_attn_v",
    "crossattention.output.dense": "cross_attn_out",
    "crossattention.output.LayerNorm": "cross_attn_norm",
    "intermediate_query.dense": "ffn_up",
    "output_query.dense": "ffn_down",
    "output_query.LayerNorm": "ffn_norm",
}
_Q_FORMER_EPS = 1e-12


def check_granite(model: SpeechLLM) -> None:
    """Whether llama.cpp computes what the model does.

    Raises:
        CheckpointError: says what it takes for granted and the model has not.
    """
    config = _config(model)
    encoder, former = config.encoder_config, config.projector_config
    wrong = {
        "its Q-Former hears the Conformer's inner layers too": bool(
            getattr(encoder, "cat_hidden_layers", None)
        ),
        f"its Q-Former is {former.hidden_size} wide, its Conformer {encoder.hidden_dim}": former.hidden_size
        != encoder.hidden_dim,
        f"its attention heads are {encoder.num_heads} times {encoder.dim_head} wide": encoder.num_heads
        * encoder.dim_head
        != encoder.hidden_dim,
        f"its convolutions reach over {encoder.conv_kernel_size} rows, an even number": encoder.conv_kernel_size
        % 2
        == 0,
        f"its Q-Former has the activation '{former.hidden_act}', not gelu": former.hidden_act != "gelu",
        f"its Q-Former's norms have the epsilon {former.layer_norm_eps:g}": former.layer_norm_eps
        != _Q_FORMER_EPS,
        f"not every layer of its Q-Former hears the Conformer ({former.cross_attention_frequency})": former.cross_attention_frequency
        != 1,
    }
    found = next((reason for reason, is_wrong in wrong.items() if is_wrong), None)
    if found is not None:
        raise CheckpointError(
            f"llama.cpp's granite_speech computes something else of this model: {found}; "
            "a bundle for the gguf engine goes without llama.cpp's own audio half"
        )


def granite_keys(model: SpeechLLM) -> dict[str, int]:
    """Keys of the file that other layouts have not."""
    config = _config(model)
    encoder = config.encoder_config
    return {
        "clip.audio.chunk_size": encoder.context_size,
        "clip.audio.conv_kernel_size": encoder.conv_kernel_size,
        "clip.audio.max_pos_emb": encoder.max_pos_emb,
        "clip.audio.projector.window_size": config.window_size,
        "clip.audio.projector.downsample_rate": config.downsample_rate,
        "clip.audio.projector.head_count": config.projector_config.num_attention_heads,
    }


def granite_tensors(model: SpeechLLM) -> dict[str, torch.Tensor]:
    """All tensors of the file: keys and values apart, pointwise convolutions as matrices, norms over the batch as two vectors."""
    tower: Any = model.audio_encoder.tower
    projector: Any = model.projector.projector
    found: dict[str, torch.Tensor] = {}
    for source, name in _PLAIN.items():
        found |= _linear(name, tower.get_submodule(source))
    for number, layer in enumerate(tower.layers):
        block = f"a.blk.{number}"
        for source, name in _LAYER.items():
            found |= _linear(f"{block}.{name}", layer.get_submodule(source))
        found[f"{block}.attn_k.weight"], found[f"{block}.attn_v.weight"] = layer.attn.to_kv.weight.chunk(2)
        found[f"{block}.attn_rel_pos_emb"] = layer.attn.rel_pos_emb.weight
        norm = layer.conv.batch_norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        found[f"{block}.conv_norm.weight"] = scale
        found[f"{block}.conv_norm.bias"] = norm.bias - norm.running_mean * scale
    found["a.proj_query"] = projector.query
    found |= _linear("a.proj_norm", projector.qformer.layernorm)
    found |= _linear("a.proj_linear", projector.linear)
    for number, layer in enumerate(projector.qformer.encoder.layer):
        for source, name in _Q_FORMER.items():
            found |= _linear(f"a.proj_blk.{number}.{name}", layer.get_submodule(source))
    return found


def _linear(name: str, module: Any) -> dict[str, torch.Tensor]:
    """Weight and bias; of a convolution over one row, or of each channel for itself, as a matrix."""
    weight: torch.Tensor = module.weight
    if weight.ndim > 2:
        weight = weight.squeeze(2 if weight.shape[2] == 1 else 1)
    return {f"{name}.weight": weight} | ({} if module.bias is None else {f"{name}.bias": module.bias})


def _config(model: SpeechLLM) -> Any:
    assert model.stock is not None
    return model.stock.model.config
