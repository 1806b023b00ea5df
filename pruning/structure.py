"""Whether transformers makes of a cut decoder's configuration what is in memory, seen without weights and before any work.

Families derive much of a layer from its number: which slide, rotate, or have experts. What a cut shifts shows here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError, UsageError
from prunella.pruning.blocks import Block
from prunella.pruning.surgery import drop_layers
from prunella.speech_llm.decoder_view import decoder_view

_PLAIN = (bool, int, float, str)


def check_cut(decoder: PreTrainedModel, blocks: Sequence[Block], size: int) -> None:
    """Refuse what cannot be cut, in milliseconds.

    Args:
        decoder: that is to be cut.
        blocks: what is cut; none: any block of `size` layers.
        size: number of layers.

    Raises:
        UsageError, CheckpointError: as `drop_layers` and `check_structure`, of the first block where no other can be cut.
    """
    count = len(decoder_view(decoder))
    proposed = [blocks] if blocks else [[Block(start, start + size)] for start in range(count - size + 1)]
    refused: UsageError | CheckpointError | None = None
    for one in proposed:
        try:
            check_structure(drop_layers(decoder, one))
            return
        except (UsageError, CheckpointError) as error:
            refused = refused or error
    if refused is not None:
        raise refused


def check_structure(decoder: PreTrainedModel) -> None:
    """Compare the layers with those of a model that is made of the decoder's own configuration, as a reader makes it.

    Raises:
        CheckpointError: names the first layer and what differs in it.
    """
    kind = decoder.config.model_type
    remedy = f"a {kind} cannot be cut like this: cut other layers, or whole groups of its pattern"
    try:
        config = type(decoder.config).from_dict(json.loads(decoder.config.to_json_string()))
        with torch.device("meta"):
            again = decoder_view(type(decoder)(config))
    except Exception as error:  # configurations check themselves, with errors of many classes
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"transformers does not take the configuration of the cut model ({reason}): {remedy}"
        ) from error
    for index, (found, expected) in enumerate(zip(decoder_view(decoder).layers, again.layers, strict=True)):
        what = _difference(found, expected)
        if what:
            raise CheckpointError(f"read back, layer {index} of the cut model would have {what}: {remedy}")


def _difference(found: nn.Module, expected: nn.Module) -> str | None:
    ours, theirs = (dict(one.named_modules()) for one in (found, expected))
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs:
            return f"{'no' if name in ours else 'a'} {name}"
        mine, other = (_facts(one[name]) for one in (ours, theirs))
        for key in mine.keys() & other.keys():
            if mine[key] != other[key]:
                return f"{'.'.join(filter(None, (name, key)))} = {other[key]}, not {mine[key]}"
    return None


def _facts(module: nn.Module) -> dict[str, Any]:
    """What is plain of a module, and the shapes of its own weights."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
    shapes = {name: tuple(values.shape) for name, values in module.named_parameters(recurse=False)}
    kept = {name: value for name, value in plain.items() if name[0] != "_" and name != "training"}
    return {"class": type(module).__name__} | kept | shapes
