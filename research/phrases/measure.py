"""How dependable is `--phrases`: commands understood, other speech refused, and what it costs.

    python research/phrases/measure.py BUNDLE --speech DEV.jsonl --source fsdd_digits

The phrases are the texts of the source's own clips. Three things are said to the model: clips whose text is on the list;
clips of the same source whose text was taken off it, the hardest to refuse (every second text is left out for that); and
clips of the other sources (at most --longest seconds). For each score from which a phrase is accepted: commands
understood, misunderstood and refused, and false accepts of both kinds, with counts. Free decoding of the same commands
stands beside it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys

from prunella.device_runtime.decoding.limits import MIN_SCORE
from prunella.device_runtime.decoding.phrase_grammar import parse_phrases
from prunella.device_runtime.decoding.text_style import style_text
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio
from prunella.evaluation.manifest import read_manifest

SCORES = (0.02, 0.05, 0.1, MIN_SCORE, 0.25, 0.4, 0.6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument(
        "--speech", required=True, metavar="JSONL", help="rows with audio_filepath, text and source"
    )
    parser.add_argument("--source", required=True, help="whose texts are the commands")
    parser.add_argument("--limit", type=int, default=200, help="clips of each kind (default: %(default)s)")
    parser.add_argument(
        "--longest", type=float, default=8.0, help="seconds of other speech (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    free = open_transcriber(args.bundle, threads=args.threads)
    style = free.prompt.text_style
    rows = read_manifest(args.speech).utterances
    own = [row for row in rows if row.source == args.source]
    texts = sorted({style_text(row.text, style) for row in own})
    listed = texts[::2]
    shuffle = random.Random(0).sample
    commands = [row for row in own if style_text(row.text, style) in listed]
    near = [row for row in own if style_text(row.text, style) not in listed]
    far = [
        row
        for row in rows
        if row.source != args.source
        and row.duration <= args.longest
        and style_text(row.text, style) not in listed
    ]
    # A score of 0.01 keeps nearly every phrase, so that one pass over the clips answers for all thresholds.
    held = free.with_phrases(parse_phrases("\n".join(listed)), min_score=0.01)
    answers: dict[str, list[tuple[bool, float]]] = {}
    spent: dict[str, list[float]] = {"phrases": [], "free": []}
    passes, right_freely = [], 0
    for kind, chosen in (("commands", commands), ("near", near), ("far", far)):
        answers[kind] = []
        for row in shuffle(chosen, min(args.limit, len(chosen))):
            samples = load_audio(row.audio)
            transcript = held.transcribe(samples)
            found = transcript.phrases[0] if transcript.phrases else None
            said = style_text(row.text, style)
            answers[kind].append((bool(found) and found["text"] == said, found["score"] if found else 0.0))
            if kind == "commands":
                heard = free.transcribe(samples)
                right_freely += style_text(heard.text, style) == said
                passes.append(transcript.segments[0].passes)
                spent["phrases"].append(transcript.timings.total)
                spent["free"].append(heard.timings.total)
        sys.stderr.write(f"{kind}: {len(answers[kind])} clips\n")

    table = []
    for least in SCORES:
        accepted = [(right, score) for right, score in answers["commands"] if score >= least]
        table.append(
            {
                "min_score": least,
                "understood": sum(right for right, _ in accepted),
                "misunderstood": sum(not right for right, _ in accepted),
                "refused": len(answers["commands"]) - len(accepted),
                "false_accepts_near": sum(score >= least for _, score in answers["near"]),
                "false_accepts_far": sum(score >= least for _, score in answers["far"]),
            }
        )
    report = {
        "source": args.source,
        "phrases": len(listed),
        "clips": {kind: len(found) for kind, found in answers.items()},
        "understood_by_free_decoding": right_freely,
        "table": table,
        "median_passes": statistics.median(passes),
        "median_seconds": {kind: round(statistics.median(values), 4) for kind, values in spent.items()},
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
