"""The decoder of a speech LLM as a text model of llama.cpp, any number of layers."""

from __future__ import annotations

from pathlib import Path

import gguf
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import PromptSpec
from prunella.export.chat_template import speech_chat_template
from prunella.export.gguf_families import Family, find_family
from prunella.export.gguf_keys import hyper_parameters, rope_tables
from prunella.export.gguf_tensors import permute_heads, source_weights, stored_tensors
from prunella.export.gguf_vocabulary import read_vocabulary
from prunella.export.mmproj_layouts import prompt_for_libmtmd
from prunella.quantize.gguf_files import ARCHITECTURE, FILE_TYPE, Value, write_gguf
from prunella.speech_llm.model import SpeechLLM

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
    keys |= hyper_parameters(config, family.arch, family.keys(config))
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
        # Where the space goes before the first word alone, llama.cpp's would also go behind a special token that comes first.
        begins_special = vocabulary.first_only and _begins_with_special(model)
        keys[f"{prefix}add_space_prefix"] = vocabulary.add_space_prefix and not begins_special
    template = speech_chat_template(*prompt_for_libmtmd(model))
    return keys | special_tokens(model) | {"tokenizer.chat_template": template}


def _begins_with_special(model: SpeechLLM) -> bool:
    first = (*model.prompt.before_ids, *model.prompt.after_ids)[:1]
    return any(token in model.tokenizer.added_tokens_decoder for token in first)


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
    """Name in the file → (..., rows, columns) or (n,) float32, rotary rows where llama.cpp wants them.

    Raises:
        CheckpointError: the decoder has a weight that this architecture of llama.cpp would not use.
    """
    weights = source_weights(decoder)
    tensors: dict[str, Float32] = {}
    for name, stored in stored_tensors(decoder, family).items():
        rows = stored.of(weights)
        tensors[name] = permute_heads(rows, stored.heads) if stored.heads else rows
    return tensors | rope_tables(decoder.config)
