"""By how much word errors are expected to rise with layers cut and weights rounded, before anything was tried.

Figures of other models than the one that is asked about: a first guess to choose by, which `prunella eval` replaces.
"""

from __future__ import annotations

from itertools import pairwise

from prunella.targets.shapes import ModelShapes

# Share of the decoder's layers that is cut → rise in percent, bridged and healed: `reference`, 0, 3, 6, 9 and 12 of 30 layers,
# "bridge, joint" against "full, same training", 89 LibriSpeech clips (research/healing_curve/results/curve.json).
# Published cuts of larger decoders cost less: 14 of 32 layers at 8 B parameters, +25 % at most (arXiv 2603.05121).
HEALED_CUT = ((0.0, 0.0), (0.1, 2.2), (0.2, 8.6), (0.3, 11.7), (0.4, 20.1))
_STEEPER = 120.0  # percent for each further share: beyond what was tried
# In percent. int4: Qwen3-ASR-0.6B rounded to nearest in blocks of 64, 4.42 → 5.16 % on test-other
# (github.com/andrewleech/qwen3-asr-onnx); llama.cpp's types by the perplexity of Llama-3-8B (its tools/quantize/README.md).
ROUNDED = {
    "fp32": 0.0,
    "F32": 0.0,
    "F16": 0.0,
    "BF16": 0.0,
    "int8": 0.5,
    "int4-mixed": 3.0,
    "int4": 17.0,
    "Q8_0": 0.1,
    "Q6_K": 0.4,
    "Q5_K_M": 0.9,
    "Q4_K_M": 2.8,
    "Q4_0": 7.5,
}


def expected_increase(shapes: ModelShapes, layers: int, recipe: str) -> float:
    """Of the word error rate, in percent of the whole model's, with so many layers kept and healed."""
    share = 1 - layers / shapes.decoder.layers
    rounded = shapes.wer_increase.get(recipe, ROUNDED.get(recipe, ROUNDED["int4"]))
    return 100 * ((1 + _cut(share) / 100) * (1 + rounded / 100) - 1)


def _cut(share: float) -> float:
    last, most = HEALED_CUT[-1]
    if share >= last:
        return most + _STEEPER * (share - last)
    for (low, less), (high, more) in pairwise(HEALED_CUT):
        if share <= high:
            return less + (more - less) * (share - low) / (high - low)
    return most
