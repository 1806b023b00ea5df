"""How far the cost model is from the clock: bundles of several depths and recipes, at one and more threads, on this machine.

    python research/fit/points.py out/demo/full-{fp32,int8,int4} out/demo/pruned-{fp32,int8,int4} --json points.json

For each number of threads the ceiling kernels are measured first, on random weights; then each bundle transcribes clips,
greedily, and the fastest of some runs stands beside what `targets/fit.py` predicts for audio of that length and answers of
that many tokens. The kernels know nothing of the bundles. A shared machine is now fast, now slow: kernels and bundles are
timed within seconds of each other, `--passes` times, and the pass with the middle error is shown.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from prunella.device_runtime.bundle import Bundle, open_bundle
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio
from prunella.device_runtime.transcriber import Transcriber
from prunella.targets.bundle_shapes import bundle_shapes
from prunella.targets.ceilings import Ceilings
from prunella.targets.compute import Compute
from prunella.targets.fit import predict

PHASES = ("encode", "prefill", "step", "total")


@dataclass(frozen=True)
class Point:
    """Seconds of each phase, measured and predicted; `encode` with the features, `step` of a token."""

    bundle: str
    layers: int
    recipe: str
    threads: int
    seconds: float
    tokens: int
    measured: dict[str, float]
    predicted: dict[str, float]

    def error(self, phase: str) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted[phase] / self.measured[phase] - 1


def predicted(bundle: Bundle, compute: Compute, seconds: float, tokens: int) -> dict[str, float]:
    """What the model says of each phase."""
    shapes, storage = bundle_shapes(bundle)
    guess = predict(shapes, storage, compute, seconds=seconds, tokens=tokens)
    return {
        "encode": guess.features + guess.encode,
        "prefill": guess.prefill,
        "step": guess.step,
        "total": guess.total,
    }


def one_pass(
    ceilings: Ceilings, transcribers: dict[Path, Transcriber], clip: Path, repeats: int
) -> list[Point]:
    """Kernels first, then every bundle: seconds apart."""
    compute = ceilings.measure()
    samples = load_audio(clip)
    seconds = len(samples) / 16_000
    points = []
    for path, transcriber in transcribers.items():
        found = [transcriber.transcribe(samples) for _ in range(repeats)]
        tokens = len(found[0].tokens) + 1  # the end is a token too, which no transcript shows
        timings = [one.timings for one in found]
        measured = {
            "encode": min(one.encode for one in timings),
            "prefill": min(one.prefill for one in timings),
            "step": min(one.decode for one in timings) / tokens,
            "total": min(one.encode + one.prefill + one.decode for one in timings),
        }
        bundle = open_bundle(path, verify=False)
        points.append(
            Point(
                path.name,
                bundle.manifest.decoder.num_layers,
                bundle.manifest.recipe,
                ceilings.threads,
                seconds,
                tokens,
                measured,
                predicted(bundle, compute, seconds, tokens),
            )
        )
    return points


def typical(passes: list[Point]) -> Point:
    """Of one bundle: the pass whose error is the middle one."""
    return sorted(passes, key=lambda one: one.error("total"))[len(passes) // 2]


def table(points: list[Point]) -> str:
    """In markdown, milliseconds, and the median error of each phase."""
    lines = [
        "| layers | recipe | threads | encode, ms | prefill, ms | token, ms | command, ms | error |",
        "|--:|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for one in points:
        cells = " | ".join(
            f"{1e3 * one.measured[phase]:.1f} / {1e3 * one.predicted[phase]:.1f}" for phase in PHASES
        )
        lines.append(
            f"| {one.layers} | {one.recipe} | {one.threads} | {cells} | {100 * one.error('total'):+.0f} % |"
        )
    for phase in PHASES:
        errors = sorted(abs(one.error(phase)) for one in points)
        lines.append(
            f"\n{phase}: median error {100 * median(errors):.0f} %, largest {100 * errors[-1]:.0f} %"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--clip", type=Path, default=Path("examples/clips/evaluation/goforward.flac"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kernels = set()
    for path in args.bundles:
        _, storage = bundle_shapes(open_bundle(path, verify=False))
        parts = (storage.attention, storage.gate_up, storage.down, storage.head, storage.encoder)
        kernels |= {part.kernel for part in parts}
    points = []
    for threads in args.threads:
        ceilings = Ceilings(threads, sorted(kernels))
        transcribers = {
            path: open_transcriber(path, threads=threads).with_options(beams=1) for path in args.bundles
        }
        ceilings.measure()  # once for nothing: pages are touched, clocks go up
        passes = [one_pass(ceilings, transcribers, args.clip, args.repeats) for _ in range(args.passes)]
        points += [typical(list(of_one)) for of_one in zip(*passes, strict=True)]
        del ceilings, transcribers
    print(table(points))
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in points], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
