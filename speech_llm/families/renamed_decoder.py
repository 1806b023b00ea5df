"""Decoders of stock classes that are another class in all but name, under which exporters and llama.cpp know them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def renamed(kind: type[PreTrainedModel], config: PreTrainedConfig, body: nn.Module, head: nn.Module) -> Any:
    """A causal LM around the parameters of another class that has them under the same names.

    Args:
        kind: of the causal LM.
        config: its configuration.
        body: the decoder without its head; more in it than the causal LM has is left out.
        head: of the other class.
    """
    with torch.device("meta"):
        decoder: Any = kind(config)
    around(decoder.model, body, config)
    decoder.lm_head = head
    return decoder


def around(empty: Any, full: nn.Module, config: PreTrainedConfig) -> None:
    """Give a module on "meta" the parameters that another one has under the same names, the same objects."""
    wanted = empty.state_dict().keys()
    there = {name: tensor for name, tensor in full.state_dict(keep_vars=True).items() if name in wanted}
    empty.load_state_dict(there, strict=False, assign=True)
    empty.rotary_emb = type(empty.rotary_emb)(config=config)  # whose tables are in no file
    empty.train(full.training)


def shared_fields(kind: type[PreTrainedConfig], other: PreTrainedConfig, **changes: Any) -> Any:
    """A configuration of `kind` with what another one has of its fields, and changes."""
    known = kind().to_dict().keys()
    there = {name: copy.deepcopy(value) for name, value in other.to_dict().items() if name in known}
    for name in ("model_type", "architectures", "transformers_version"):
        there.pop(name, None)
    return kind(**there | changes)


def update_fields(config: PreTrainedConfig, decoder: PreTrainedConfig) -> None:
    """Bring what a decoder's configuration says since it was cut into the one that it was made of, in place."""
    kept = (
        "model_type",
        "architectures",
        "transformers_version",
        "rope_parameters",
        "tie_word_embeddings",
        "dtype",
    )
    now = decoder.to_dict()
    for name in config.to_dict():
        if name in now and name not in kept:
            setattr(config, name, copy.deepcopy(now[name]))
