"""A training run on disk, in a folder beside the result: `last/` and `best/`, each whole or not there at all.

Only safetensors and JSON. There is no random state to keep: every draw is a function of the seed, the step and the clip.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from prunella.device_runtime.base.files import bring_back, whole_directory, write_json
from prunella.healing.plan import HealingError

LAST, BEST = "last", "best"
_WEIGHTS, _OPTIMIZER, _STATE = "trainable.safetensors", "optimizer.safetensors", "state.json"
_FULL = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)


@dataclass
class RunState:
    """Where a run is. `seconds` is training time over all sittings; `history` has one entry an evaluation."""

    fingerprint: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    precision: str = ""
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    speech_seconds: float = 0.0
    positions: int = 0
    best_wer: float | None = None
    best_step: int = 0
    bad_evaluations: int = 0
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def trainable_tensors(learner: nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters by name, whole, on the CPU. Under FSDP every process has to call this."""
    names = {name.removeprefix("module.") for name, p in learner.named_parameters() if p.requires_grad}
    state: dict[str, Any] = get_model_state_dict(learner, options=_FULL)
    return {name: tensor for name, tensor in state.items() if name in names}


def optimizer_tensors(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state by `parameter/key`, whole, on the CPU. Under FSDP every process has to call this."""
    state: Any = get_optimizer_state_dict(learner, optimizer, options=_FULL)["state"]
    return {
        f"{name}/{key}": torch.as_tensor(value).cpu()
        for name, values in state.items()
        for key, value in values.items()
    }


def unshard(module: nn.Module) -> None:
    """Turn the parameters that FSDP spread over processes into whole ones, in place. Every process has to call this.

    The module must not be run afterwards: its hooks still expect shards.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            _leave_fsdp(part)
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                whole = parameter.full_tensor().cpu()
                part.register_parameter(name, nn.Parameter(whole, requires_grad=parameter.requires_grad))


def _leave_fsdp(part: nn.Module) -> None:
    """Give a module back the class that it had: `fully_shard` made one of FSDPModule and it, and knows no way back."""
    _, own = type(part).__bases__
    part.__class__ = own


def restore(learner: nn.Module, optimizer: torch.optim.Optimizer | None, folder: Path) -> None:
    """Put a checkpoint's tensors into the learner and its optimizer.

    Raises:
        HealingError: they do not fit.
    """
    try:
        weights: dict[str, Any] = load_file(folder / _WEIGHTS)
        names = {name.removeprefix("module.") for name, p in learner.named_parameters() if p.requires_grad}
        if names != weights.keys():  # the frozen rest is missing on purpose, so torch's own check is off
            raise KeyError(f"{len(names ^ weights.keys())} of its tensors are others")
        set_model_state_dict(learner, weights, options=_FULL)
        if optimizer is None:
            return
        state: dict[str, Any] = {}
        for name, tensor in load_file(folder / _OPTIMIZER).items():
            parameter, _, key = name.rpartition("/")
            state.setdefault(parameter, {})[key] = tensor
        whole = get_optimizer_state_dict(learner, optimizer, options=_FULL)
        set_optimizer_state_dict(learner, optimizer, {**whole, "state": state}, options=_FULL)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HealingError(
            f"the training checkpoint {folder} cannot be used ({reason}): remove {folder.parent}"
        ) from error


def write_run(
    work: Path,
    name: str,
    state: RunState,
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
) -> None:
    """Write `work/name`, replacing an older one only when the new one is complete.

    Raises:
        HealingError: the disk is full; the older one is intact.
    """
    try:
        with whole_directory(work / name) as partial:
            save_file({key: tensor.contiguous() for key, tensor in weights.items()}, partial / _WEIGHTS)
            if optimizer:
                save_file(
                    {key: tensor.contiguous() for key, tensor in optimizer.items()}, partial / _OPTIMIZER
                )
            write_json(partial / _STATE, asdict(state))
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else str(error)
        kept = "the one before it is intact" if (work / name).is_dir() else "there is none before it"
        raise HealingError(
            f"cannot write the training checkpoint {work / name} ({reason}); {kept}: free some space and run the same command again"
        ) from error


def read_state(work: Path, name: str = LAST) -> RunState | None:
    """The state of a run, None if there is none."""
    bring_back(work / name)
    path = work / name / _STATE
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return RunState(**{f.name: body[f.name] for f in fields(RunState)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HealingError(f"{path} cannot be read ({error}): remove {work} to begin anew") from error
