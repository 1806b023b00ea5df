"""A healing run as a process of its own: python healing_job.py MANIFEST WORK LOSSES [SECONDS_A_STEP].

Killed, restarted and spread over processes by the tests. Losses are appended as `step loss` lines, by the first of several
processes; each of them leaves a file LOSSES.KIND.RANK, with how they share the work. With SHARDED=1 in the environment the
decoder's layers are spread over them by FSDP.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from conftest import make_model
from safetensors.torch import save_file

from prunella.healing.clips import open_speech
from prunella.healing.heal import heal
from prunella.healing.plan import Augmentation, HealingPlan

manifest, work, losses = sys.argv[1:4]
pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
torch.set_num_threads(1)
plan = HealingPlan(
    steps=20,
    rank=4,
    train=("projector", "decoder", "encoder"),
    decoder_lr=5e-3,
    batch_positions=300,
    micro_positions=100,
    precision="fp32",
    checkpoint_steps=3,
    augmentation=Augmentation(variants=2, noise_only=0.1),
)


def on_step(step: int, loss: float) -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    with Path(losses).open("a") as file:
        file.write(f"{step} {loss!r}\n")
    time.sleep(pause)


def shard_on_cpus() -> None:
    """accelerate (1.15) takes FSDP for processes with accelerators alone, and makes DDP of it elsewhere: told here."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    Accelerator(cpu=True)
    layers = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
    )
    AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": layers}  # noqa: SLF001
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # noqa: SLF001


if os.environ.get("SHARDED") == "1":
    shard_on_cpus()
model = heal(make_model(), plan, open_speech([manifest]), work=None if work == "-" else work, on_step=on_step)
if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
    save_file(dict(model.projector.state_dict()), f"{losses}.safetensors")
if torch.distributed.is_initialized():
    kind = AcceleratorState().distributed_type.name.lower()
    Path(f"{losses}.{kind}.{torch.distributed.get_rank()}").touch()
    torch.distributed.destroy_process_group()
