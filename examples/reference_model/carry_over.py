"""Give a pruned model what its full model has learned since: the change of every layer that both have, and of the projector.

    python examples/reference_model/carry_over.py out/pruned --was reference --now out/reference-2 -o out/pruned-2

Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): the difference of two sittings is added as it is. A start for
`prunella heal`, which would else learn the same again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from prunella.device_runtime.errors import UsageError
from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM

_DECODER_LAYER = re.compile(r"^(decoder\..*?\blayers\.)(\d+)\.")
_NORM = "input_layernorm.weight"


@torch.no_grad()
def carry_over(pruned: SpeechLLM, was: SpeechLLM, now: SpeechLLM, weight: float = 1.0) -> SpeechLLM:
    """`pruned`, changed in place by `weight` times what leads from `was` to `now`.

    Raises:
        UsageError: `pruned` has a layer that `was` does not have.
    """
    kept = _kept(pruned, was)
    before, after = was.state_dict(), now.state_dict()
    for name, tensor in pruned.state_dict().items():
        match = _DECODER_LAYER.match(name)
        source = f"{match[1]}{kept[int(match[2])]}{name[match.end(2) :]}" if match else name
        if tensor.is_floating_point():
            tensor += weight * (after[source] - before[source])
    return pruned


def _kept(pruned: SpeechLLM, full: SpeechLLM) -> list[int]:
    """Which layers of `full` these are: their norms, which LoRA leaves alone, tell."""
    norms = [layer.get_parameter(_NORM) for layer in full.layers]
    kept = []
    for number, layer in enumerate(pruned.layers):
        same = [i for i, norm in enumerate(norms) if torch.equal(norm, layer.get_parameter(_NORM))]
        if len(same) != 1:
            raise UsageError(
                f"layer {number} of the pruned model is none of the full one's: give the model that it was pruned from"
            )
        kept += same
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pruned", metavar="PRUNED")
    parser.add_argument(
        "--was", required=True, metavar="MODEL", help="the full model that it was pruned from"
    )
    parser.add_argument("--now", required=True, metavar="MODEL", help="the same after more training")
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    now = load(args.now)
    model = carry_over(load(args.pruned), load(args.was), now, args.weight)
    past = model.config.provenance.get("healing", [])
    sittings = [run for run in now.config.provenance.get("healing", []) if run not in past]
    carried = {"stage": "carry over", "weight": args.weight, "sittings": sittings}
    model.config = model.config.with_provenance(healing=[*past, carried])
    save_checkpoint(model, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
