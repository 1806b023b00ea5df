"""How much of a cut's cost does the bridge recover, by method and by amount of calibration speech?

    python research/bridge_study/study.py --train TRAIN.jsonl --dev DEV.jsonl -o out/bridge_study

Blocks are given, so that methods are compared on the same cuts. Besides the methods of `prunella prune` it measures what
the literature adds: a scale alone (Prune&Comp), a diagonal in the Hadamard basis (LinearPatch), and fits without the
prompt's positions. The last is why sinks stay in the fit.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from scipy.linalg import hadamard
from tqdm import tqdm

from prunella.device_runtime.base.files import write_json
from prunella.evaluation.manifest import read_manifest
from prunella.evaluation.table import render_table
from prunella.pruning.blocks import Block
from prunella.pruning.bridge import BridgeSums, Method, with_down_projection
from prunella.pruning.calibration import speech_batches
from prunella.pruning.redundancy import hidden_states
from prunella.pruning.surgery import drop_layers
from prunella.speech_llm import load
from prunella.speech_llm.batches import PositionClass, cross_entropy
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.process import tune

BLOCKS = ("13:16", "13:19", "6:15")
RIDGE = 0.1


@torch.inference_mode()
def collect(decoder, blocks, batches):
    """One pass: sums for every block, with and without the prompt's positions, and mean magnitudes of the two states."""
    view = decoder_view(decoder)
    sums = {
        (block, whole): BridgeSums(view.down_projection(block.start - 1), view.residual_scale)
        for block in blocks
        for whole in (True, False)
    }
    size = 1 << (decoder.config.hidden_size - 1).bit_length()
    rotation = torch.tensor(hadamard(size) / size**0.5, dtype=torch.float32)[: decoder.config.hidden_size]
    magnitude = {
        block: [torch.zeros(()), torch.zeros(()), torch.zeros(size), torch.zeros(size)] for block in blocks
    }
    for batch in tqdm(batches, desc="collecting"):
        seen = {}
        handles = [
            view.watch_activations(block.start - 1, partial(seen.__setitem__, block)) for block in blocks
        ]
        with hidden_states(decoder) as states:
            view.run_until(max(block.stop for block in blocks), batch.inputs_embeds, batch.attention_mask)
            states = list(states)
        for handle in handles:
            handle.remove()
        for block in blocks:
            for whole in (True, False):
                rows = batch.is_token & (whole | (batch.position_class != PositionClass.PROMPT))
                sums[block, whole].add(seen[block][rows], states[block.start][rows], states[block.stop][rows])
            start, stop = (
                states[i][batch.is_token & (batch.position_class != 0)] for i in (block.start, block.stop)
            )
            for total, part in zip(magnitude[block], (start.abs().mean(), stop.abs().mean(), (start @ rotation).abs().sum(0),
                                                      (stop @ rotation).abs().sum(0)), strict=True):  # fmt: skip
                total += part
    return sums, magnitude, rotation


class Patched:
    """A decoder whose receiving layer's output goes through a fixed map: what cannot be folded without parameters."""

    def __init__(self, decoder, layer, function):
        self.layer, self.function, self.decoder = decoder_view(decoder).layers[layer], function, decoder

    def loss(self, batches):
        def hook(_module, _args, output):
            return (
                (self.function(output[0]), *output[1:])
                if isinstance(output, tuple)
                else self.function(output)
            )

        handle = self.layer.register_forward_hook(hook)
        try:
            return cross_entropy(self.decoder, batches)
        finally:
            handle.remove()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="reference")
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument(
        "--committed", default=str(Path(__file__).parents[2] / "examples" / "clips" / "calibration.jsonl")
    )
    parser.add_argument(
        "--source", default="librispeech_train_clean_5", help="source of the dev clips, and of the first rows"
    )
    parser.add_argument("--clips", type=int, nargs="*", default=[50, 200, 800])
    parser.add_argument("--dev-clips", type=int, default=28)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    model = load(args.model)
    decoder, blocks = model.decoder, [Block.parse(text) for text in BLOCKS]
    dev = read_manifest(args.dev).only([args.source]).at_most(18).sample(args.dev_clips)
    dev = list(speech_batches(model, dev.utterances))
    train = read_manifest(args.train).at_most(18)
    full = cross_entropy(decoder, dev)
    cuts = {block: drop_layers(decoder, [block]) for block in blocks}
    costs = {block: cross_entropy(cut, dev) for block, cut in cuts.items()}
    deepest = {
        len(block): cross_entropy(drop_layers(decoder, [Block(29 - len(block), 29)]), dev) for block in blocks
    }
    amounts = [("committed clips", read_manifest(args.committed).utterances)]
    # LibriSpeech while it lasts, every source for the largest amount.
    amounts += [(f"{count} clips", train.sample(count, seed=1).utterances) for count in args.clips]
    rows = []
    for name, clips in amounts:
        sums, magnitude, rotation = collect(decoder, blocks, speech_batches(model, clips))
        for block in blocks:
            found = {}
            for (method, whole), label in {(Method.REFIT, True): "refit", (Method.MAP, True): "map",
                                           (Method.REFIT, False): "refit without the prompt"}.items():  # fmt: skip
                weight = sums[block, whole].solve(RIDGE, method)
                found[label] = cross_entropy(with_down_projection(cuts[block], block.start - 1, weight), dev)
            start, stop, start_rotated, stop_rotated = magnitude[block]
            scale = float(stop / start)
            found["scale alone"] = Patched(cuts[block], block.start - 1, lambda h, s=scale: h * s).loss(dev)
            diagonal = rotation @ torch.diag(stop_rotated / start_rotated) @ rotation.T
            found["Hadamard diagonal"] = Patched(
                cuts[block], block.start - 1, lambda h, d=diagonal: h @ d
            ).loss(dev)
            for label, loss in found.items():
                recovered = (costs[block] - loss) / (costs[block] - full)
                rows.append({"calibration": name, "clips": len(clips), "block": str(block), "method": label, "full": full,
                             "cut": costs[block], "deepest": deepest[len(block)], "bridged": loss, "recovered": recovered})  # fmt: skip
            write_json(Path(args.output) / "bridge_study.json", rows)
    header = ("calibration", "block", "method", "full", "cut", "bridged", "recovered %")
    cells = [(r["calibration"], r["block"], r["method"], f"{r['full']:.3f}", f"{r['cut']:.3f}", f"{r['bridged']:.3f}",
              f"{100 * r['recovered']:.0f}") for r in rows]  # fmt: skip
    print(render_table(header, cells))
    print(json.dumps({"deepest": deepest}))


if __name__ == "__main__":
    tune()
    main()
