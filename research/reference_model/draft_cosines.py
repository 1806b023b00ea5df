"""At which cosine is the token nearest to the audio what was said? Sets `draft_never` and `draft_sure` of a model.

    python research/reference_model/draft_cosines.py BUNDLE --speech train.jsonl --clips 60

Prints, for every step of 0.05 of the cosine, how many nearest tokens are found (in order) in what the model then said, and
the line through these shares: `draft_never` is where it meets 0, `draft_sure` where it meets 1.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys

import numpy as np

from prunella.device_runtime.decoding.draft import spoken_tokens
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio
from prunella.evaluation.manifest import read_manifest

STEP = 0.05


def nearest_tokens(transcriber, samples):
    """Runs of nearest tokens of the audio, and their greatest cosines."""
    ids = spoken_tokens(transcriber.tokenizer, transcriber.prompt.text_style)
    rows = transcriber.engine.token_embeddings(ids)
    audio = transcriber.engine.encode(samples)
    rows, audio = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) for x in (rows, audio))
    near = audio @ rows.T
    best = near.argmax(axis=1)
    runs = np.split(np.arange(len(best)), np.flatnonzero(np.diff(best)) + 1)
    return [ids[best[run[0]]] for run in runs], [float(near[run].max()) for run in runs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--speech", required=True, metavar="MANIFEST")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    transcriber = open_transcriber(args.bundle, threads=args.threads)
    cosines, hits, names = [], [], []
    for one in read_manifest(args.speech).at_most(15).sample(args.clips).utterances:
        samples = load_audio(one.audio)
        said = list(transcriber.transcribe(samples).tokens)
        tokens, near = nearest_tokens(transcriber, samples)
        hit = np.zeros(len(tokens))
        for match in difflib.SequenceMatcher(None, tokens, said, autojunk=False).get_matching_blocks():
            hit[match.a : match.a + match.size] = 1
        cosines += near
        hits += hit.tolist()
        names += tokens
    place, right, named = np.array(cosines), np.array(hits), np.array(names)
    # The token of blank audio: the most frequent of those that are never said.
    often = sorted(set(names), key=names.count, reverse=True)[:20]
    blank = next((token for token in often if right[named == token].mean() < 0.02), -1)
    place, right = place[named != blank], right[named != blank]
    rows = []
    for low in np.arange(0.2, 0.9, STEP):
        inside = (place >= low) & (place < low + STEP)
        if inside.sum() >= 10:
            rows.append(
                (round(float(low + STEP / 2), 3), int(inside.sum()), round(float(right[inside].mean()), 3))
            )
    rising = np.array([(middle, share, count) for middle, count, share in rows if 0.05 < share < 0.9])
    if len(rising) < 2:
        sys.stderr.write(f"too few nearest tokens to draw a line through: {rows}. Give more --clips\n")
        return 1
    slope, offset = np.polyfit(rising[:, 0], rising[:, 1], 1, w=np.sqrt(rising[:, 2]))
    if slope <= 0:
        sys.stderr.write(
            f"the cosine does not tell what was said: {rows}. Such a model needs no guesses from audio\n"
        )
        return 1
    result = {
        "draft_never": round(-offset / slope, 3),
        "draft_sure": round((1 - offset) / slope, 3),
        "draft_blank": int(blank),
        "shares": rows,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
