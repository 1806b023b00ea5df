"""Average the weights of several sittings: often better than each of them, at no cost on the device.

    python research/reference_model/average.py out/reference-2:0.5 out/reference-1:0.5 -o out/averaged --weights out/averaged.weights

With one model it only packs that. Model soups (Wortsman et al. 2022, arXiv 2203.05482). All must come from one another or from one start. Prompt and limits
are those of the first. Whoever needs int4 gives a model trained with --rounding at least half of the weight, and measures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from packing import pack_reference

from prunella.device_runtime.base.errors import UsageError
from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.process import tune


@torch.no_grad()
def average(parts: list[tuple[SpeechLLM, float]]) -> SpeechLLM:
    """The weighted mean of models of one shape, in the first of them."""
    total = sum(weight for _, weight in parts)
    states = [(model.state_dict(), weight / total) for model, weight in parts]
    first = parts[0][0]
    for name, tensor in first.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(sum(weight * state[name].double() for state, weight in states))
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", metavar="MODEL:WEIGHT")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="also the files that the repository ships")
    parser.add_argument("--ship-rank", type=int, default=56)
    args = parser.parse_args()
    parts, runs, shares = [], {}, {}
    for part in args.parts:
        name, colon, weight = part.rpartition(":")
        if not colon:
            raise UsageError(f"{part}: give MODEL:WEIGHT")
        model = load(name)
        parts.append((model, float(weight)))
        shares[Path(name).name] = float(weight)
        # A sitting that several of them went through counts once.
        for run in model.config.provenance.get("healing", []):
            runs.setdefault(run.get("run") or str(run), run)
    averaged = average(parts)
    if len(parts) > 1:
        averaged.config = averaged.config.with_provenance(
            healing=[*runs.values(), {"stage": "average", "of": shares}]
        )
    save_checkpoint(averaged, args.out)
    if args.weights:
        pack_reference(averaged, args.weights, args.ship_rank)


if __name__ == "__main__":
    tune()
    main()
