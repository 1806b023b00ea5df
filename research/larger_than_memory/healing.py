"""Memory of healing by size, by the formulas of `prunella heal --estimate`; nothing is loaded.

python research/larger_than_memory/healing.py
"""

from __future__ import annotations

import sys

from shapes import CONFIGS

from prunella.healing.estimate import decoder_shapes, estimate
from prunella.healing.plan import HealingPlan

PLAIN = HealingPlan(steps=1)
SAVING = HealingPlan(steps=1, gradient_checkpointing=True, micro_positions=512)
QLORA = HealingPlan(steps=1, gradient_checkpointing=True, micro_positions=512, base_bits=4)

if __name__ == "__main__":
    lines = [
        "| decoder | fp32 | bf16 | bf16, saving | QLoRA, saving | TFLOP an hour of speech |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for name, config in CONFIGS.items():
        of = decoder_shapes(config)
        runs = [
            estimate(of, plan, precision=precision)
            for plan, precision in ((PLAIN, "fp32"), (PLAIN, "bf16"), (SAVING, "bf16"), (QLORA, "bf16"))
        ]
        cells = [
            f"{run.bytes / 1e9:.0f} GB" if run.bytes > 1e10 else f"{run.bytes / 1e9:.1f} GB" for run in runs
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {runs[0].work / 1e12:.0f} |")
    sys.stdout.write("\n".join(lines) + "\n")
