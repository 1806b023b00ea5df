"""How fast is `heal`, and how fast is the plain Hugging Face Trainer on the same clips?

    python research/healing_speed.py reference --speech speech.jsonl --clips 96

Both train the projector and a LoRA on all linear layers, one epoch over the same clips, each in a process of its own,
in turn. "trainer" is what one writes first: random order, a fixed number of clips a step, the encoder in every step,
logits everywhere. `--trainer-bf16` gives it bf16 as well. FLOPs are those of the decoder's weights (2 forward,
2 backward for each weight and position that is not padding; no gradients of frozen weights).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLIPS_A_STEP = 16


def ours(model, clips, args):
    from prunella.healing.heal import heal
    from prunella.healing.plan import Augmentation, HealingPlan

    plan = HealingPlan(epochs=1, rank=args.rank, augmentation=Augmentation.none(), precision=args.precision)
    with tempfile.TemporaryDirectory() as cache:
        times = [time.perf_counter()]
        heal(model, plan, clips, cache=cache, on_step=lambda step, loss: times.append(time.perf_counter()))
    return times


def trainer(model, clips, args):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from prunella.healing.clips import tokenize
    from prunella.speech_llm.batches import SpeechExample, speech_batch
    from prunella.speech_llm.torch_engine import model_features

    rows = tokenize(model, clips)

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            lora = LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules="all-linear")
            self.model = model
            self.decoder = get_peft_model(model.decoder, lora)
            model.projector.requires_grad_(True)

        def forward(self, examples):
            batch = speech_batch(self.model, examples)
            logits = self.decoder(
                inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask
            ).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten())
            return {"loss": loss}

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, place):
            heard, valid = model_features(model, rows[place].clip.read())
            return SpeechExample(heard, rows[place].tokens, valid)

    times = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            times.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=CLIPS_A_STEP,
            num_train_epochs=1,
            learning_rate=5e-4,
            bf16=args.trainer_bf16,
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(
            Plain(),
            settings,
            train_dataset=Rows(),
            data_collator=lambda some: {"examples": some},
            callbacks=[Clock()],
        ).train()
    return times


def side(args):
    """One system in this process; the result goes to a file."""
    import random

    import torch

    from prunella.healing.clips import open_speech, tokenize
    from prunella.healing.features import FeatureStore
    from prunella.healing.plan import Augmentation
    from prunella.healing.training_speed import matmul_rate
    from prunella.speech_llm.load import load
    from prunella.speech_llm.process import tune

    tune()

    torch.set_num_threads(args.threads)
    clips = open_speech([args.speech])
    random.Random(0).shuffle(clips)
    clips = clips[: args.clips]
    model = load(args.model)
    rate = max(matmul_rate(torch.bfloat16), matmul_rate(torch.float32))
    rows = tokenize(model, clips)
    positions = int(FeatureStore(model, rows, Augmentation.none(), 0, encode=True).positions(0).sum())
    weights = sum(p.numel() for p in model.layers.parameters())
    before = time.process_time()
    times = {"ours": ours, "trainer": trainer}[args.side](model, clips, args)
    took = times[-1] - times[0]
    result = {
        "side": args.side,
        "seconds": took,
        "cpu_seconds": time.process_time() - before,
        "positions_per_second": positions / took,
        "speech_hours_per_hour": sum(row.clip.seconds for row in rows) / took,
        "model_flops_utilisation": 4 * weights * positions / took / rate,
        "matmul_gflops": rate / 1e9,
    }
    Path(args.result).write_text(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--speech", required=True)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--trainer-bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["ours", "trainer"], help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(args)
        return
    results = {"ours": [], "trainer": []}
    for _ in range(args.rounds):
        for name, rows in results.items():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "result.json"
                subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], "--side", name, "--result", str(file)],
                    check=True,
                    stdout=sys.stderr,
                )
                rows.append(json.loads(file.read_text()))
                print(json.dumps(rows[-1]), flush=True)
    for key in ("seconds", "cpu_seconds"):
        medians = {name: statistics.median(row[key] for row in rows) for name, rows in results.items()}
        print(
            f"{key}: trainer {medians['trainer']:.1f}, ours {medians['ours']:.1f}: {medians['trainer'] / medians['ours']:.2f} times faster"
        )


if __name__ == "__main__":
    main()
