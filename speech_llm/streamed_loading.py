"""Models whose decoder stays on disk (`streaming.py`): what is around it is read whole, it is small."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from prunella.device_runtime.base.errors import CheckpointError
from prunella.quantize.free_memory import free_memory
from prunella.speech_llm.model_folder import float_bytes, why_unreadable
from prunella.speech_llm.process import return_freed_memory
from prunella.speech_llm.streaming import LayerStream, attach
from prunella.speech_llm.weight_files import WeightFiles

Stream = Literal["auto", "on", "off"]
_SHARE = 0.5  # of free memory: work on a model takes as much again as the model


def chooses_streaming(folder: Path, asked: Stream) -> bool:
    """Whether a model is to be read layer by layer; "auto": where it is larger, in float32, than half of the free memory.

    That it is, and what was asked for, is said on stderr; the process is set for it.
    """
    needed, free = float_bytes(folder), free_memory()
    streams = needed > _SHARE * free if asked == "auto" else asked == "on"
    if streams:
        return_freed_memory()
    how = "layer by layer from disk" if streams else "whole"
    if streams or asked != "auto":
        sys.stderr.write(
            f"reading {folder} {how}: {needed / 1e9:.1f} GB in float32, {free / 1e9:.1f} GB free\n"
        )
    return streams


def empty_decoder(folder: Path) -> PreTrainedModel:
    """The causal LM of a folder, its layers, table and head being read when they run.

    Raises:
        CheckpointError: transformers has no class for it, or its weights cannot be read one by one.
    """
    files = WeightFiles(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        dtype = config.dtype
        with init_empty_weights(include_buffers=False):  # positions are computed, not read
            decoder = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=torch.float32, trust_remote_code=False
            )
    except Exception as error:  # of many libraries and classes
        raise CheckpointError(
            f"cannot load a causal LM from '{folder}': {why_unreadable(folder, error)} "
            "(give a folder, or a Hugging Face id on a connected machine)"
        ) from error
    decoder.tie_weights()  # undone by what made it empty
    decoder.config.dtype = dtype  # what is written is in the dtype that was read
    decoder.name_or_path = str(folder)
    attach(decoder, LayerStream(files, stored_names(decoder, files)))
    model: PreTrainedModel = decoder.train(False)
    return model.requires_grad_(False)


def empty_stock(folder: Path, kind: Any) -> PreTrainedModel:
    """A model of a stock class of which all but the decoder and its head is in memory; the decoder has no weights yet.

    Raises:
        CheckpointError: as `empty_decoder`.
    """
    files = WeightFiles(folder)
    try:
        config = kind.config_class.from_pretrained(folder)
        with init_empty_weights(include_buffers=False):
            stock: Any = kind(config)
        stock.tie_weights()
    except Exception as error:  # of many libraries and classes
        raise CheckpointError(
            f"cannot load a {kind.__name__} from '{folder}': {why_unreadable(folder, error)}"
        ) from error
    names = stored_names(stock, files)
    around = [
        name for name in stock.state_dict() if not name.startswith(("model.language_model.", "lm_head."))
    ]
    missing = [name for name in around if name not in names]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of a {kind.__name__}, such as {missing[0]}: its weights are in another "
            "layout, or not all there; download it again, or take a copy that transformers has saved"
        )
    stock.load_state_dict({name: files.read(names[name]) for name in around}, strict=False, assign=True)
    model: PreTrainedModel = stock.eval().requires_grad_(False)
    return model


def attach_stock(stock: PreTrainedModel, decoder: PreTrainedModel, folder: Path) -> None:
    """Let `decoder`, which was taken out of `stock` as it is, read its weights from the stock model's folder."""
    files = WeightFiles(folder)
    own = {id(parameter): name for name, parameter in decoder.named_parameters(remove_duplicate=False)}
    names = stored_names(stock, files)
    places: dict[str, str] = {}
    for name, parameter in stock.named_parameters(remove_duplicate=False):
        if id(parameter) in own and name in names:
            places[own[id(parameter)]] = names[name]
    _tie(decoder, places)
    attach(decoder, LayerStream(files, places))


def stored_names(model: PreTrainedModel, files: WeightFiles) -> dict[str, str]:
    """Names of a model's tensors → in the files, of those that transformers reads as they are there."""
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters: list[Any] = [one for one in transforms if not isinstance(one, WeightRenaming)]
    known = model.state_dict()
    places: dict[str, str] = {}
    for stored in files:
        tried = [(renamings, converters), ([], [])]
        for rename, convert in tried:
            name, converted = rename_source_key(stored, rename, convert, model.base_model_prefix, known)
            if name in known and converted is None:
                places.setdefault(name, stored)
                break
    _tie(model, places)
    return places


def _tie(model: nn.Module, places: dict[str, str]) -> None:
    """Of parameters that are one, one alone is stored."""
    first: dict[int, str] = {}
    every = list(model.named_parameters(remove_duplicate=False))
    for name, parameter in every:
        if name in places:
            first.setdefault(id(parameter), places[name])
    for name, parameter in every:
        if id(parameter) in first:
            places.setdefault(name, first[id(parameter)])
