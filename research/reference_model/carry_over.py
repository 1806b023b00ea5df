"""Give a pruned model what its full model has learned since, or the other way round: the change of what both have.

    python research/reference_model/carry_over.py out/pruned --was reference --now out/reference-2 -o out/pruned-2
    python research/reference_model/carry_over.py reference --was out/pruned --now out/pruned-2 -o out/reference-2

Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): the difference of two sittings is added as it is. A start for
`prunella heal`, which would else learn the same again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from packing import matching_layers

from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.process import tune

_DECODER_LAYER = re.compile(r"^(decoder\..*?\blayers\.)(\d+)\.")


@torch.no_grad()
def carry_over(model: SpeechLLM, was: SpeechLLM, now: SpeechLLM, weight: float = 1.0) -> SpeechLLM:
    """`model`, changed in place by `weight` times what leads from `was` to `now`, in the layers that it has of them.

    Raises:
        CheckpointError: neither of `model` and `was` was pruned from the other.
    """
    if len(model.layers) <= len(was.layers):
        kept = matching_layers(model.decoder, was.decoder, "the full model")
        places = {old: new for new, old in enumerate(kept)}
    else:
        places = dict(enumerate(matching_layers(was.decoder, model.decoder, "the full model")))
    target, before = model.state_dict(), was.state_dict()
    for name, tensor in now.state_dict().items():
        match = _DECODER_LAYER.match(name)
        if match and int(match[2]) not in places:
            continue
        place = f"{match[1]}{places[int(match[2])]}{name[match.end(2) :]}" if match else name
        if tensor.is_floating_point():
            target[place] += weight * (tensor - before[name])
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="what is to be given something")
    parser.add_argument(
        "--was", required=True, metavar="MODEL", help="what it was pruned from, or what was pruned from it"
    )
    parser.add_argument("--now", required=True, metavar="MODEL", help="the same after more training")
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    model, was, now = load(args.model), load(args.was), load(args.now)
    carry_over(model, was, now, args.weight)
    known = was.config.provenance.get("healing", [])
    sittings = [run for run in now.config.provenance.get("healing", []) if run not in known]
    carried = {"stage": "carry over", "weight": args.weight, "sittings": sittings}
    past = model.config.provenance.get("healing", [])
    model.config = model.config.with_provenance(healing=[*past, carried])
    save_checkpoint(model, args.out)
    return 0


if __name__ == "__main__":
    tune()
    raise SystemExit(main())
