"""What makes training fast on the machine at hand, set inside the program instead of in a README."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.healing.plan import HealingPlan

_EAGER_BYTES = 2 << 30
_LONG_MINUTES = 10.0  # compiling takes a minute
_LONG_STEPS = 300  # as long, at the 2 s a step of a CPU
_WORTH = 1.2  # bf16 must beat fp32 by this much to be chosen


def matmul_rate(dtype: torch.dtype, device: torch.device | str = "cpu", *, rows: int = 2_048) -> float:
    """FLOP/s of (rows, 576) x (576, 1536) products, the best of a few over about 0.1 s."""
    a = torch.randn(rows, 576, device=device).to(dtype)
    b = torch.randn(1_536, 576, device=device).to(dtype)
    flops = 2.0 * rows * 576 * 1_536
    best = 0.0
    until = time.perf_counter() + 0.1
    while time.perf_counter() < until or not best:
        start = time.perf_counter()
        for _ in range(3):
            torch.nn.functional.linear(a, b)
        if a.device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 3 * flops / (time.perf_counter() - start))
    return best


def choose_precision(wanted: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; `wanted` "auto" measures on a CPU, where bf16 without hardware support is slower than fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type != "cpu":
        return "fp32"
    return "bf16" if matmul_rate(torch.bfloat16) > _WORTH * matmul_rate(torch.float32) else "fp32"


def choose_attention(decoder: PreTrainedModel, plan: HealingPlan, device: torch.device) -> str:
    """ "eager" on a CPU where its scores fit into memory, else "sdpa".

    torch's fused attention is made for long sequences: at the 50 to 300 positions of an utterance, plain products are
    faster on a CPU (a step of the reference in bf16: 3.8 s of CPU time against 4.7).
    """
    config = decoder.config
    scores = config.num_hidden_layers * config.num_attention_heads * plan.micro_positions * 300 * 8
    return "eager" if device.type == "cpu" and scores < _EAGER_BYTES else "sdpa"


def choose_compile(plan: HealingPlan, precision: str, device: torch.device) -> bool:
    """Whether the decoder's layers are worth compiling: where matrix products are fast, what lies between them is not."""
    if plan.gradient_checkpointing or plan.compile == "off":
        return False
    if plan.compile == "on":
        return True
    limits = [(plan.minutes, _LONG_MINUTES), (plan.steps, _LONG_STEPS)]
    given = [limit >= enough for limit, enough in limits if limit is not None]
    long = bool(given) and all(given)
    return device.type == "cpu" and precision == "bf16" and long and compiler_works()


def compiler_works() -> bool:
    """Whether torch.compile gets through on this machine. Where there is a compiler and it fails, stderr says so."""
    if not (shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")):
        return False
    try:
        torch.compile(lambda x: torch.relu(x) + 1)(torch.zeros(64))
    except Exception as error:  # of whatever kind: a long run must not end for want of speed
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        sys.stderr.write(
            f"training goes on uncompiled, and slower: torch.compile fails here ({reason}). "
            "Mend the C++ compiler, name another in CXX, or say --compile off\n"
        )
        return False
    return True


class CompiledLayers:
    """Decoder layers whose forward is compiled while training computes its loss, and as it was everywhere else."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        # One compilation serves all layers and, as its shapes are symbols, all lengths.
        self._layers = [(layer, torch.compile(layer.forward, dynamic=True)) for layer in layers]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the layers are the compiled ones."""
        with ExitStack() as stack:
            for layer, compiled in self._layers:
                stack.enter_context(_forward_replaced(layer, compiled))
            yield


@contextmanager
def _forward_replaced(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it, calling `layer` runs `forward`; wrapping the layer instead would rename its parameters."""
    layer.forward = forward  # an attribute of the object hides the method of its class
    try:
        yield
    finally:
        del layer.forward
