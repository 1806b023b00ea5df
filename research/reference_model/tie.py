"""How far a pass over several tokens can differ from passes over one: `Engine.near_tie_margin` in `device_runtime/decoding/engine.py`.

    python research/reference_model/tie.py BUNDLE [CLIP ...]

Decodes clips token by token, feeds the same tokens again 2, 5 and 60 at a time, and prints quantiles of the change in the
gap between the two most likely tokens, the share of gaps below the tie, and how many tokens came out otherwise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio

CLIPS = Path(__file__).parents[2] / "examples" / "clips" / "evaluation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clips", type=Path, nargs="*", default=sorted(CLIPS.glob("*.flac")))
    args = parser.parse_args()
    transcriber = open_transcriber(args.bundle)
    engine, ends = transcriber.engine, transcriber.prompt.eos_ids
    changes, gaps, turned = [], [], 0
    for clip in args.clips:
        embeddings = engine.encode(load_audio(clip))
        rows = [engine.start(embeddings).copy()]
        tokens = [int(rows[0].argmax())]
        while tokens[-1] not in ends and len(tokens) < 60:
            rows.append(engine.step(tokens[-1]).copy())
            tokens.append(int(rows[-1].argmax()))
        if len(tokens) < 2:
            continue
        plain = np.stack(rows[1:])
        best = np.argsort(plain, axis=1)[:, -2:]
        gap = np.diff(np.take_along_axis(plain, best, axis=1), axis=1)
        gaps.append(gap)
        for size in (2, 5, 60):
            engine.start(embeddings)
            parts = [
                engine.extend(tokens[at : min(at + size, len(tokens) - 1)]).copy()
                for at in range(0, len(tokens) - 1, size)
            ]
            several = np.concatenate(parts)
            changes.append(np.abs(np.diff(np.take_along_axis(several, best, axis=1), axis=1) - gap))
            turned += int((several.argmax(axis=1) != plain.argmax(axis=1)).sum())
    change, gap = np.concatenate(changes), np.concatenate(gaps)
    quantiles = dict(
        zip(
            ("50%", "90%", "99%", "100%"),
            np.quantile(change, [0.5, 0.9, 0.99, 1.0]).round(4).tolist(),
            strict=True,
        )
    )
    print(
        json.dumps(
            {
                "engine": engine.name,
                "tokens": len(gap),
                "compared": len(change),
                "change": quantiles,
                "gaps_below_tie": round(float((gap < engine.near_tie_margin).mean()), 3),
                "turned": turned,
            }
        )
    )


if __name__ == "__main__":
    main()
