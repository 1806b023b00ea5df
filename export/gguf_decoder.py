"""The decoder of a speech LLM as a text model of llama.cpp, any number of layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import PromptSpec
from prunella.export.chat_template import speech_chat_template
from prunella.export.gguf_families import (
    FAMILIES,
    Family,
    find_family,
    hyper_parameters,
    permute_heads,
    rope_factors,
)
from prunella.export.gguf_vocabulary import read_vocabulary
from prunella.export.mmproj_layouts import prompt_for_libmtmd
from prunella.quantize.gguf_files import ARCHITECTURE, FILE_TYPE, Value, write_gguf
from prunella.speech_llm.model import SpeechLLM

ROPE_FACTORS = "rope_freqs.weight"
_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}


def write_decoder(model: SpeechLLM, path: Path, *, kind: str = "F16", max_context: int = 2_048) -> Path:
    """Write `model.decoder` with its tokenizer and the prompt as a chat template.

    Args:
        model: in float32.
        path: of the file; its folder exists.
        kind: F32, F16 or BF16, of the matrices; vectors stay F32.
        max_context: positions that will be used.

    Raises:
        CheckpointError: llama.cpp does not run this decoder, or has no tokenizer like its.
    """
    if kind not in _FILE_TYPES:
        raise CheckpointError(f"no float type '{kind}': choose one of {', '.join(_FILE_TYPES)}")
    family = find_family(model.decoder.config, max_context)
    matrices = GGMLQuantizationType[kind]

    def storage(name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
        return matrices if len(shape) > 1 else GGMLQuantizationType.F32

    keys = decoder_keys(model, family) | {FILE_TYPE: int(_FILE_TYPES[kind])}
    write_gguf(path, keys, decoder_tensors(model.decoder, family), storage)
    return path


def decoder_keys(model: SpeechLLM, family: Family) -> dict[str, Value]:
    """All keys of the file but its type."""
    config = model.decoder.config
    keys: dict[str, Value] = {
        ARCHITECTURE: gguf.MODEL_ARCH_NAMES[family.arch],
        "general.type": "model",
        "general.name": str(
            model.config.provenance.get("name")
            or model.config.provenance.get("base_model")
            or config.model_type
        ),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    keys |= hyper_parameters(config, family)
    vocabulary = read_vocabulary(model.tokenizer, config.vocab_size)
    prefix = "tokenizer.ggml."
    keys |= {
        f"{prefix}model": vocabulary.model,
        f"{prefix}pre": vocabulary.pre,
        f"{prefix}tokens": list(vocabulary.tokens),
        f"{prefix}token_type": list(vocabulary.types),
    }
    if vocabulary.scores:
        keys[f"{prefix}scores"] = list(vocabulary.scores)
    if vocabulary.model == "gpt2":
        keys[f"{prefix}merges"] = list(vocabulary.merges) or [
            ""
        ]  # llama.cpp wants the key, GGUF no empty list
    if vocabulary.model == "llama":
        keys[f"{prefix}add_space_prefix"] = vocabulary.add_space_prefix
    template = speech_chat_template(*prompt_for_libmtmd(model))
    return keys | special_tokens(model) | {"tokenizer.chat_template": template}


def special_tokens(model: SpeechLLM) -> dict[str, Value]:
    """Ids of the special tokens. What ends a transcript ends a text; the prompt's own text decides whether it begins with one."""
    prompt: PromptSpec = model.prompt
    tokenizer = model.tokenizer
    own = tokenizer.eos_token_id
    ends = list(dict.fromkeys([*prompt.eos_ids, *([] if own is None else [own])]))
    # llama.cpp has three names for what ends an answer.
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": ends[0],
        "eot": ends[1] if len(ends) > 1 else own,
        "eom": ends[2] if len(ends) > 2 else None,
        "padding": tokenizer.pad_token_id,
        "unknown": tokenizer.unk_token_id,
    }
    keys: dict[str, Value] = {
        f"tokenizer.ggml.{name}_token_id": int(index) for name, index in named.items() if index is not None
    }
    return keys | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}


def decoder_tensors(decoder: PreTrainedModel, family: Family) -> dict[str, Float32]:
    """Name in the file → (rows, columns) or (n,) float32, rotary rows where llama.cpp wants them.

    Raises:
        CheckpointError: the decoder has a weight that this architecture of llama.cpp would not use.
    """
    config = decoder.config
    tensors: dict[str, Float32] = {}
    for source, name in tensor_names(decoder, family).items():
        rows = source_weights(decoder)[source]
        if heads := rotary_heads(source, config, family):
            rows = permute_heads(rows, heads)
        tensors[name] = rows
    factors = rope_factors(config)
    if factors is not None:
        tensors[ROPE_FACTORS] = factors
    return tensors


def source_weights(decoder: PreTrainedModel) -> Mapping[str, Float32]:
    """The decoder's parameters by their Hugging Face names, without a copy; a tied head is left out."""
    tied = bool(decoder.config.tie_word_embeddings)
    return {
        name: parameter.detach().float().cpu().numpy()
        for name, parameter in decoder.state_dict().items()
        if not (tied and name == "lm_head.weight") and not name.endswith("rotary_emb.inv_freq")
    }


def tensor_names(decoder: PreTrainedModel, family: Family) -> dict[str, str]:
    """Hugging Face name → name in the file, for every parameter."""
    config = decoder.config
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    mapped: dict[str, str] = {}
    for source in source_weights(decoder):
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        projection = source.split(".")[-2]
        dropped = source.endswith(".bias") and projection not in family.biases
        if target is None or dropped or (projection in ("q_norm", "k_norm") and not family.qk_norm):
            kinds = ", ".join(FAMILIES)
            raise CheckpointError(
                f"llama.cpp's {gguf.MODEL_ARCH_NAMES[family.arch]} has no {source}: only plain {kinds} decoders "
                "are written to GGUF; take the onnx engine"
            )
        mapped[source] = target
    return mapped


def rotary_heads(source: str, config: object, family: Family) -> int:
    """Heads of a q or k projection whose rows are reordered; 0 for all else."""
    projection = source.split(".")[-2]
    if not family.permuted or projection not in ("q_proj", "k_proj"):
        return 0
    heads = config.num_attention_heads  # type: ignore[attr-defined]
    return heads if projection == "q_proj" else getattr(config, "num_key_value_heads", None) or heads
