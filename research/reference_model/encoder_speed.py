"""How long do the audio encoders of two bundles take over the same audio, and how large are they?

    python research/reference_model/encoder_speed.py BUNDLE BUNDLE

Noise of several lengths, the bundles in turn, the median of `--repeat`. Mel spectrogram, encoder, projector and CTC head
are all in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--seconds", nargs="+", type=float, default=[2.0, 5.0, 10.0, 15.0])
    parser.add_argument("--repeat", type=int, default=10)
    args = parser.parse_args()
    engines = {bundle: open_transcriber(bundle).engine for bundle in args.bundles}
    for bundle in engines:
        size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        sys.stdout.write(f"{bundle}: {size / 1e6:.0f} MB\n")
    rng = np.random.default_rng(0)
    for seconds in args.seconds:
        samples = (0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)
        spent: dict[Path, list[float]] = {bundle: [] for bundle in engines}
        for _ in range(args.repeat + 2):  # the first two are cold
            for bundle, engine in engines.items():
                began = time.perf_counter()
                engine.encode(samples)
                spent[bundle].append(1000 * (time.perf_counter() - began))
        medians = [statistics.median(times[2:]) for times in spent.values()]
        ratios = ", ".join(f"{median:.1f} ms ({median / medians[0]:.2f})" for median in medians)
        sys.stdout.write(f"{seconds:g} s of audio: {ratios}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
