"""A LoRA adapter that a model hears speech with, in a folder of its own beside the weights: merged as the model is read.

What is cut, healed and exported is then one model. The weights of before are not in what is saved, so that an adapter for
pictures, which is made for those, has no place beside it any more.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError

_CONFIG = "adapter_config.json"


def has_speech_adapter(folder: Path, name: str) -> bool:
    """Whether a model's folder has one under this name; "" is none."""
    return bool(name) and (folder / name / _CONFIG).is_file()


def no_streaming(folder: Path, name: str) -> CheckpointError:
    """What is said where such a model is to be read layer by layer."""
    return CheckpointError(
        f"the adapter in {folder / name} is merged into the weights in memory, and those are to be read layer by layer: read the "
        "model whole (--stream off), or merge the adapter first on a machine with more memory (`prunella prune` saves it merged)"
    )


def merge_speech_adapter(stock: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The same model with the adapter of `folder` merged into its weights, in place.

    Raises:
        CheckpointError: no LoRA in safetensors, or not of this model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    weights = folder / "adapter_model.safetensors"
    remedy = "download the folder again, or remove it if its adapter is merged already"
    if not weights.is_file():
        raise CheckpointError(f"{folder} has an {_CONFIG} and no {weights.name}: {remedy}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing keys, which are compared below
            adapted: Any = PeftModel.from_pretrained(stock, str(folder))
        wanted = get_peft_model_state_dict(adapted).keys()
        there = load_file(weights).keys()
    except Exception as error:  # of many libraries and classes
        raise CheckpointError(
            f"the adapter in {folder} cannot be put on its model ({error}): {remedy}"
        ) from error
    if wrong := sorted(set(wanted) ^ set(there)):
        raise CheckpointError(
            f"the adapter in {folder} does not fit its model ({len(wrong)} tensors, such as {wrong[0]}): {remedy}"
        )
    merged: Any = adapted.merge_and_unload(safe_merge=True)
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    model: PreTrainedModel = merged
    return model
