"""What makes training fast on the machine at hand, set inside the program instead of in a README."""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel

from prunella.healing.plan import HealingPlan

_EAGER_BYTES = 2 << 30
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
