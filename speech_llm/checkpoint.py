"""A checkpoint on disk. Of a stock class it is what transformers writes (`stock.py`); of prunella's own: `config.json`, `audio_encoder.safetensors`, `projector.safetensors` and `decoder/`.

A model with a CTC head also has `ctc_head.safetensors`.

`decoder/` is an ordinary `AutoModelForCausalLM` folder with its tokenizer, so that transformers, the ONNX builder and
the GGUF writer all point at it unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.base.files import whole_directory
from prunella.speech_llm.config import SpeechLLMConfig
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_folder import (
    check_model_folder,
    copy_side_files,
    full_disks_are_os_errors,
    why_unreadable,
)
from prunella.speech_llm.stock import CTC_HEAD_NAME, save_stock
from prunella.speech_llm.streamed_loading import empty_decoder
from prunella.speech_llm.streamed_saving import write_streamed
from prunella.speech_llm.streaming import stream_of

ENCODER_NAME = "audio_encoder.safetensors"
PROJECTOR_NAME = "projector.safetensors"
DECODER_NAME = "decoder"


def save_checkpoint(model: SpeechLLM, folder: str | Path) -> Path:
    """Write `model` to `folder`, whole or not at all, in the dtypes that it has in memory."""
    folder = Path(folder)
    with whole_directory(folder) as partial:
        if not isinstance(model.config, SpeechLLMConfig):
            save_stock(model, partial)
            return folder
        model.config.save(partial)
        _save_tensors(model.audio_encoder, partial / ENCODER_NAME)
        _save_tensors(model.projector, partial / PROJECTOR_NAME)
        if model.ctc_head is not None:
            _save_tensors(model.ctc_head, partial / CTC_HEAD_NAME)
        save_decoder(model.decoder, model.tokenizer, partial / DECODER_NAME)
    return folder


def load_checkpoint(folder: str | Path, *, stream: bool = False) -> SpeechLLM:
    """Read a checkpoint folder, in float32, ready for inference; with `stream` its decoder stays on disk (`streaming.py`).

    Raises:
        CheckpointError: something is missing, or a weight is absent, superfluous or of another shape.
    """
    folder = Path(folder)
    config = SpeechLLMConfig.load(folder)
    decoder, tokenizer = load_decoder(folder / DECODER_NAME, stream=stream)
    model = SpeechLLM(config, decoder, tokenizer)
    load_weights(model.audio_encoder, _read_tensors(folder / ENCODER_NAME), folder / ENCODER_NAME)
    load_weights(model.projector, _read_tensors(folder / PROJECTOR_NAME), folder / PROJECTOR_NAME)
    if model.ctc_head is not None:
        load_weights(model.ctc_head, _read_tensors(folder / CTC_HEAD_NAME), folder / CTC_HEAD_NAME)
    return model.eval().requires_grad_(False)


def is_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` looks like a checkpoint made by `save_checkpoint`."""
    folder = Path(folder)
    return (folder / PROJECTOR_NAME).is_file() and (folder / DECODER_NAME).is_dir()


def save_decoder(decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write a causal LM and its tokenizer as an ordinary Hugging Face folder, with what else its own folder has for them."""
    with full_disks_are_os_errors():
        if stream_of(decoder) is not None:
            Path(folder).mkdir(exist_ok=True)
            write_streamed(decoder, Path(folder))
        else:
            decoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if decoder.name_or_path:
        copy_side_files(Path(decoder.name_or_path), Path(folder), tokenizer=tokenizer)


def load_decoder(
    source: str | Path, *, stream: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM in float32 and its tokenizer, from a folder or (whole) a Hugging Face id; see `load_checkpoint`.

    Raises:
        CheckpointError: transformers cannot load it; its reason is in the message.
    """
    if Path(source).is_dir():
        check_model_folder(Path(source))
    try:
        decoder = (
            empty_decoder(Path(source))
            if stream
            else AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except CheckpointError:
        raise
    except Exception as error:  # of many libraries and classes
        raise CheckpointError(
            f"cannot load a causal LM from '{source}': {why_unreadable(source, error)} "
            "(give a folder, or a Hugging Face id on a connected machine)"
        ) from error
    model = text_half(decoder.train(False))
    return model.requires_grad_(False), tokenizer


def text_half(model: PreTrainedModel) -> PreTrainedModel:
    """The causal LM in a model that also sees, around the same weights (Gemma 3, whose auto class is that of text and images).

    Every other model comes back as it is.
    """
    config = model.config.get_text_config(decoder=True)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    body = getattr(model.base_model, "language_model", None)
    if config is model.config or kind is None or body is None:
        return model
    with torch.device("meta"):
        text: Any = kind(config)
    if type(text.base_model) is not type(body):
        return model
    setattr(text, text.base_model_prefix, body)
    text.set_output_embeddings(model.get_output_embeddings())  # type: ignore[no-untyped-call]  # transformers'
    text.generation_config = model.generation_config
    config.name_or_path, config.architectures = model.name_or_path, [kind.__name__]
    text.name_or_path = model.name_or_path
    found: PreTrainedModel = text.train(False)
    return found


def load_weights(module: nn.Module, tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    """Copy `tensors` into `module`; every parameter must be there once, none more.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{where} does not fit its config.json: {reason}") from error


def saved_bytes(module: nn.Module) -> int:
    """Of the weights of a model or a part of one in its dtypes, tied ones once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    # safetensors raises a class of its own for a corrupt file, OSError for a missing one.
    except Exception as error:
        raise CheckpointError(
            f"cannot read {path} ({error}): save or download the checkpoint again"
        ) from error


def _save_tensors(module: nn.Module, path: Path) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    with full_disks_are_os_errors():
        save_file(tensors, path, {"format": "pt"})
