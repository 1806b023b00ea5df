"""Speech LLMs that bring a LoRA adapter along in their own folder, which is on wherever there is audio: it is merged into their weights.

Once layers are cut, and wherever the model is run by something else, there is nothing for an adapter to be put upon; and what
transformers writes of a model with its adapter on are names that it cannot read again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm.weight_files import weight_paths

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_FLAG = "has_lora_adapter"


def has_adapter(folder: Path) -> bool:
    """Whether a model's folder brings an adapter.

    Raises:
        CheckpointError: its configuration says that it does, and it does not: without it, it is another model.
    """
    here = (folder / _CONFIG).is_file()
    body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if body.get(_FLAG) and not here:
        raise CheckpointError(
            f"{folder} has no {_CONFIG}, and its config.json says that it hears by a LoRA adapter ({_FLAG}): download it whole, "
            f"or set {_FLAG} to false if the adapter is merged into its weights"
        )
    return here


def read_plain(kind: Any, folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """A model of the stock class `kind` in float32, and the tensors that the folder lacks."""
    stock, info = kind.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    return stock, sorted(info["missing_keys"])


def read_merged(kind: Any, folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """The same with the folder's adapter merged; its configuration says so.

    Raises:
        CheckpointError: the adapter is no LoRA in safetensors, or does not fit the model.
    """
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} has an {_CONFIG} and no {_WEIGHTS}: download it whole (adapters in other formats are not read)"
        )
    # Not from the folder: transformers would put the adapter on, and tell of its missing tensors alone.
    stock, info = kind.from_pretrained(
        None,
        config=kind.config_class.from_pretrained(folder, trust_remote_code=False),
        state_dict=_tensors(folder),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if (folder / "generation_config.json").is_file():
        stock.generation_config = GenerationConfig.from_pretrained(folder)
    renamed = getattr(stock, "_weight_conversions", None)
    found = stock.load_adapter(str(folder))
    if (
        renamed is not None
    ):  # which the adapter's take the place of: names are undone by them when it is saved
        stock._weight_conversions = renamed  # noqa: SLF001 - nothing public keeps a file's names
    wrong = sorted({*found.missing_keys, *found.unexpected_keys})
    if wrong:
        raise CheckpointError(
            f"the adapter in {folder} does not fit its model ({len(wrong)} tensors, such as {wrong[0]}): download both again"
        )
    _merge(stock, folder)
    if hasattr(stock.config, _FLAG):
        setattr(stock.config, _FLAG, False)
    return stock, sorted(info["missing_keys"])


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of the model itself."""
    return {name: tensor for path in weight_paths(folder) for name, tensor in load_file(path).items()}


def _merge(stock: PreTrainedModel, folder: Path) -> None:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    modules = [
        (name, module)
        for name, module in stock.named_modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    for name, module in modules:
        if not isinstance(module, LoraLayer):
            raise CheckpointError(
                f"the adapter in {folder} is no LoRA ({type(module).__name__} at {name}): merge it first, with peft"
            )
        layer: Any = module
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(stock.get_submodule(parent), child, layer.get_base_layer())
    body: Any = stock
    body._hf_peft_config_loaded = False  # noqa: SLF001 - nothing public takes an adapter off that was merged
    del body.peft_config
