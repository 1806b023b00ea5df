"""Taking rows out of a model's token table and head, and the same tokens out of its tokenizer, so that every runtime can load what is left."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import PromptSpec
from prunella.pruning.surgery import share_weights
from prunella.speech_llm import SpeechLLM, TextLLM
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.stock import StockShell, assembled
from prunella.speech_llm.tokenizer_surgery import TokenizerParts, cut_tokenizer

Model = TypeVar("Model", SpeechLLM, TextLLM)
# Keys of configurations whose values are token ids, or lists of them.
_HOLDS_IDS = re.compile(r"(.*_)?token_(ids?|index)|(begin_)?suppress_tokens|(bad|force)_words_ids")
# Parts of a configuration that have vocabularies of their own, or none.
_PLACEHOLDERS = {"audio_token_id", "image_token_id"}  # of the text, wherever a configuration has them
_OTHER_PARTS = frozenset({"audio_config", "vision_config", "encoder_config"})


def cut_vocabulary(model: Model, kept: Collection[int]) -> Model:
    """The model with these tokens alone, numbered from 0 in their old order; the one given is left as it was.

    All but the token table and the head is shared. Rows that no token has go, unless the configuration names them.

    Raises:
        CheckpointError: a tokenizer or a decoder of a kind that cannot be cut.
    """
    table: Any = decoder_view(model.decoder).embeddings.weight
    named: set[int] = {token for token in config_ids(model) if token < len(table)}
    parts = TokenizerParts(model.tokenizer)
    known: set[int] = (parts.names.keys() | parts.added.keys()) & set(kept)
    if known and max(known) >= len(table):
        raise CheckpointError(
            f"the tokenizer has ids up to {max(known)}, the token table {len(table)} rows: they do not belong together"
        )
    rows = [*sorted(known), *sorted(named - known)]  # a tokenizer's numbers have no holes
    places = {old: new for new, old in enumerate(rows)}
    tokenizer = cut_tokenizer(model.tokenizer, known)
    decoder = _cut_decoder(model.decoder, rows, places)
    if isinstance(model, TextLLM):
        return replace(model, decoder=decoder, tokenizer=tokenizer)
    half = (model.audio_encoder, model.projector)
    prompt = _renumbered_prompt(model.prompt, places)
    cut = SpeechLLM(model.config, decoder, tokenizer, audio_half=half, prompt=prompt, stock=model.stock)
    cut.ctc_head = model.ctc_head
    if model.stock is not None:
        cut.stock = _cut_shell(cut, model.stock, places)
    return cut.eval().requires_grad_(False)


def config_ids(model: SpeechLLM | TextLLM) -> set[int]:
    """Token ids that configurations and the prompt name."""
    found: set[int] = set()

    def note(token: int) -> int:
        found.add(token)
        return token

    _renumber(model.decoder.config.to_dict(), note)
    if model.decoder.generation_config is not None:
        _renumber(model.decoder.generation_config.to_dict(), note)
    if isinstance(model, SpeechLLM):
        prompt = model.prompt
        found |= {token for piece in prompt.segments for token in piece.ids} | set(prompt.eos_ids)
        found |= {token for one in prompt.languages for token in one.ids}
        found |= {token for mark in prompt.time_marks for token in mark.ids}
        if model.stock is not None:
            _renumber(model.stock.config.to_dict(), note)
            if model.stock.model.generation_config is not None:
                _renumber(model.stock.model.generation_config.to_dict(), note)
    return {token for token in found if token >= 0}


def _cut_decoder(decoder: PreTrainedModel, rows: list[int], places: Mapping[int, int]) -> PreTrainedModel:
    cut: Any = share_weights(decoder)
    index = torch.tensor(rows)
    embeddings, head = cut.get_input_embeddings(), cut.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise CheckpointError(
            f"the decoder's head is a {type(head).__name__}, not a plain matrix: its vocabulary cannot be cut"
        )
    old_size = len(embeddings.weight)
    if len(head.weight) != old_size:
        raise CheckpointError(
            f"the decoder's head has {len(head.weight)} rows, its token table {old_size}: its vocabulary cannot be cut"
        )
    tied = head.weight is embeddings.weight
    embeddings.weight = nn.Parameter(embeddings.weight[index].clone(), requires_grad=False)
    head.weight = embeddings.weight if tied else nn.Parameter(head.weight[index].clone(), requires_grad=False)
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias[index].clone(), requires_grad=False)
    embeddings.num_embeddings = head.out_features = len(rows)
    for module in cut.modules():  # what classes note of their configuration
        if getattr(module, "vocab_size", None) == old_size:
            module.vocab_size = len(rows)
        if isinstance(padding := getattr(module, "padding_idx", None), int):
            module.padding_idx = places.get(padding)
    _renumber_config(cut.config, places, len(rows))
    if cut.generation_config is not None:
        _renumber_config(cut.generation_config, places, None)
    made: PreTrainedModel = cut
    return made


def _cut_shell(cut: SpeechLLM, shell: StockShell, places: Mapping[int, int]) -> StockShell:
    config = copy.deepcopy(shell.config)
    _renumber_config(config, places, len(places))
    stock = assembled_with(cut, replace(shell, config=config))
    if stock.generation_config is not None:
        _renumber_config(stock.generation_config, places, None)
    return replace(shell, config=config, model=stock)


def assembled_with(model: SpeechLLM, shell: StockShell) -> PreTrainedModel:
    """`assembled` with another shell than the model has yet."""
    model.stock = shell
    return assembled(model)


def _renumbered_prompt(prompt: PromptSpec, places: Mapping[int, int]) -> PromptSpec:
    def moved(ids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(places[token] for token in ids)

    return replace(
        prompt,
        segments=tuple(replace(piece, ids=moved(piece.ids)) for piece in prompt.segments),
        languages=tuple(replace(one, ids=moved(one.ids)) for one in prompt.languages),
        time_marks=tuple(replace(one, ids=moved(one.ids)) for one in prompt.time_marks),
        eos_ids=moved(prompt.eos_ids),
    )


def _renumber_config(config: Any, places: Mapping[int, int], size: int | None) -> None:
    """Change a configuration in place: ids by the names of their keys, and the size of the vocabulary, parts of it alike."""
    for key, value in list(vars(config).items()):
        if key in _OTHER_PARTS:
            for name in _PLACEHOLDERS & vars(value).keys() if hasattr(value, "to_dict") else ():
                setattr(value, name, _mapped(getattr(value, name), lambda token: places.get(token, token)))
            continue
        if hasattr(value, "to_dict"):
            _renumber_config(value, places, size)
        elif _holds_ids(key):
            setattr(config, key, _mapped(value, lambda token: places.get(token, token)))
        elif key == "vocab_size" and size is not None:
            config.vocab_size = size


def _renumber(body: Mapping[str, Any], note: Any) -> None:
    for key, value in body.items():
        if isinstance(value, Mapping) and key in _OTHER_PARTS:
            _renumber({name: value[name] for name in _PLACEHOLDERS & value.keys()}, note)
        elif isinstance(value, Mapping):
            _renumber(value, note)
        elif _holds_ids(key):
            _mapped(value, note)


def _holds_ids(key: str) -> bool:
    return _HOLDS_IDS.fullmatch(str(key)) is not None  # id2label has numbers


def _mapped(value: Any, move: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return move(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(one, move) for one in value)
    return value
