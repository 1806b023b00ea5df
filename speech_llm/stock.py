"""Speech LLMs of transformers' own classes: read as they are on the Hub, taken apart for the work, saved as transformers would.

A checkpoint is what `save_pretrained` of the stock class writes; prunella's own facts stand beside it (`stock_config.py`),
where other loaders do not look.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError, UsageError
from prunella.speech_llm.families import Family
from prunella.speech_llm.folder_tokenizer import read_tokenizer
from prunella.speech_llm.merged_adapter import has_adapter, read_merged, read_plain
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_folder import copy_side_files, full_disks_are_os_errors, why_unreadable
from prunella.speech_llm.speech_adapter import has_speech_adapter, merge_speech_adapter, no_streaming
from prunella.speech_llm.stock_config import StockConfig, StockFacts
from prunella.speech_llm.streamed_loading import attach_stock, empty_stock, stored_names
from prunella.speech_llm.streamed_saving import write_streamed
from prunella.speech_llm.streaming import stream_of
from prunella.speech_llm.weight_files import WeightFiles

CTC_HEAD_NAME = "ctc_head.safetensors"
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class StockShell:
    """What a stock model is besides its decoder.

    Attributes:
        family: of the model.
        model: the stock model as it was read. Its decoder's modules may be other ones by now, see `assembled`.
        folder: that it was read from.
        config: of the model as it was read.
    """

    family: Family
    model: PreTrainedModel
    folder: Path
    config: PreTrainedConfig


def load_stock(folder: Path, family: Family, *, stream: bool = False) -> SpeechLLM:
    """Read a model of a stock class, in float32, ready for inference; with `stream` its decoder stays on disk (`streaming.py`).

    Raises:
        CheckpointError: transformers cannot load it, or its prompt has no place for audio.
    """
    stock, tokenizer = _read(folder, family, stream)
    return take_apart(stock, tokenizer, family, folder)


def take_apart(
    stock: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family, folder: Path
) -> SpeechLLM:
    """A `SpeechLLM` around the parameters of a stock model; `folder` has its other files."""
    facts = StockFacts.load(folder, family.model_type)
    as_read = copy.deepcopy(stock.config)
    config = StockConfig(facts, family.geometry(stock.config, facts.trimmed))
    decoder = family.as_causal_lm(stock)
    decoder.name_or_path = str(folder)
    if any(parameter.is_meta for parameter in decoder.parameters()):
        attach_stock(stock, decoder, folder)
    prompt = family.prompt(stock.config, tokenizer, folder, _end_tokens(stock, tokenizer))
    model = SpeechLLM(
        config,
        decoder,
        tokenizer,
        audio_half=family.audio_half(stock, facts.trimmed),
        prompt=replace(prompt, text_style=facts.text_style),
        stock=StockShell(family, stock, folder, as_read),
    )
    if model.ctc_head is not None:
        _load_head(model.ctc_head, folder / CTC_HEAD_NAME)
    return model.eval().requires_grad_(False)


def assembled(model: SpeechLLM) -> PreTrainedModel:
    """The stock model with the decoder that `model` has now, around the same parameters.

    Raises:
        CheckpointError: the model is of no stock class.
    """
    shell = model.stock
    if shell is None:
        raise CheckpointError(f"a model of the family '{model.config.family}' has no class in transformers")
    old: Any = shell.model
    config = _stock_config(model, shell)
    with torch.device("meta"):
        stock: Any = type(old)(config)
    # What is not the decoder's stays; what was built on "meta" is replaced, all of it.
    for name, part in old.model.named_children():
        setattr(stock.model, name, part)
    shell.family.put_decoder(stock, model.decoder)
    stock.generation_config = copy.deepcopy(old.generation_config)
    # How names in files became those in memory, of models that were read: undone when it is saved.
    if (renamed := getattr(old, "_weight_conversions", None)) is not None:
        stock._weight_conversions = renamed  # noqa: SLF001 - nothing public keeps a file's names
    left = [name for name, tensor in stock.named_parameters() if tensor.is_meta]
    if left:
        raise CheckpointError(f"{type(old).__name__} has {left[0]}, for which nothing is known here")
    made: PreTrainedModel = stock.eval()
    return made


def _stock_config(model: SpeechLLM, shell: StockShell) -> Any:
    config: Any = copy.deepcopy(shell.config)
    shell.family.put_config(config, model.decoder.config)
    return config


def save_stock(model: SpeechLLM, folder: Path) -> None:
    """Write the stock checkpoint into `folder`, which exists: the model, its processor's files, and prunella's facts."""
    assert model.stock is not None
    assert isinstance(model.config, StockConfig)
    with full_disks_are_os_errors():
        if stream_of(model.decoder) is not None:
            known = stored_names(model.stock.model, WeightFiles(model.stock.folder)).values()
            write_streamed(model.decoder, folder, known=known, config=_stock_config(model, model.stock))
        else:
            assembled(model).save_pretrained(folder)
        # The file is the processor's, where there is one: the tokenizer's own template is no substitute for it.
        template = (model.stock.folder / _TEMPLATE).is_file()
        model.tokenizer.save_pretrained(folder, save_jinja_files=template)
    if template:
        (folder / _TEMPLATE).unlink(missing_ok=True)
    copy_side_files(model.stock.folder, folder, tokenizer=model.tokenizer)
    model.config.facts.save(folder)
    if model.ctc_head is not None:
        tensors = {name: tensor.detach().contiguous() for name, tensor in model.ctc_head.state_dict().items()}
        with full_disks_are_os_errors():
            save_file(tensors, folder / CTC_HEAD_NAME, {"format": "pt"})


def hear_true_length(model: SpeechLLM) -> None:
    """Make a model of a family that hears whole windows hear recordings as long as they are, in place.

    To its weights that is another input until they are healed on it; a CTC head that listened to windows is dropped.

    Raises:
        UsageError: the family hears the true length anyhow.
    """
    shell = model.stock
    if shell is None or shell.family.true_length:
        raise UsageError(
            f"a model of the family '{model.config.family}' hears no silence behind a recording: there is nothing to trim"
        )
    assert isinstance(model.config, StockConfig)
    if model.config.facts.trimmed:
        return
    model.remove_ctc_head()
    facts = replace(model.config.facts, trimmed=True)
    model.config = StockConfig(facts, shell.family.geometry(shell.model.config, True))
    model.audio_encoder, model.projector = shell.family.audio_half(shell.model, True)
    model.eval()


def reload_stock(model: SpeechLLM, folder: Path) -> SpeechLLM:
    """Read back what `save_stock` wrote of `model`."""
    assert model.stock is not None
    return load_stock(folder, model.stock.family, stream=stream_of(model.decoder) is not None)


def _read(folder: Path, family: Family, stream: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    kind = getattr(transformers, family.architecture, None)
    if kind is None or Version(transformers.__version__) < Version(family.since):
        raise CheckpointError(
            f"{folder} is a {family.model_type}, which transformers has from {family.since} on, and {transformers.__version__} "
            f"is installed: pip install 'transformers>={family.since}'"
        )
    try:
        adapted = has_adapter(folder)
        if stream and has_speech_adapter(folder, family.speech_adapter):
            raise no_streaming(folder, family.speech_adapter)
        if stream:
            if adapted:
                raise no_streaming(folder, "")
            return empty_stock(folder, kind), read_tokenizer(folder)
        stock, missing = read_merged(kind, folder) if adapted else read_plain(kind, folder)
        tokenizer = read_tokenizer(folder)
    except CheckpointError:
        raise
    except Exception as error:  # of many libraries and classes
        raise CheckpointError(
            f"cannot load a {family.architecture} from '{folder}': {why_unreadable(folder, error)}"
        ) from error
    if missing:  # which transformers makes up at random
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of a {family.architecture}, such as {missing[0]}: its weights are in "
            "another layout, or not all there; download it again, or take a copy that transformers has saved"
        )
    if has_speech_adapter(folder, family.speech_adapter):
        stock = merge_speech_adapter(stock, folder / family.speech_adapter)
    _forget_dtypes(stock.config, folder)
    model: PreTrainedModel = stock.train(False)
    return model, tokenizer


def _forget_dtypes(config: Any, folder: Path) -> None:
    """Parts of a configuration are told the dtype of loading, and would write it down where the folder has none."""
    body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in config.sub_configs:
        if not {"dtype", "torch_dtype"} & set(body.get(name) or ()):
            getattr(config, name).dtype = None


def _end_tokens(stock: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end an answer; the tokenizer's own first, which is taught."""
    named: Any = None
    for config in (stock.generation_config, stock.config, stock.config.get_text_config()):
        named = getattr(config, "eos_token_id", None)
        if named is not None:
            break
    known = [named] if isinstance(named, int) else list(named or ())
    own = tokenizer.eos_token_id
    if not known and own is None:
        raise CheckpointError("neither the model nor its tokenizer names an end token: set eos_token_id")
    first = [own] if own in known or not known else []
    return tuple(dict.fromkeys([*first, *known]))


def _load_head(head: nn.Module, path: Path) -> None:
    try:
        head.load_state_dict(load_file(path), strict=True)
    except Exception as error:  # safetensors has a class of its own
        raise CheckpointError(f"cannot read {path} ({error}): save the model again") from error
