"""What `--effort fast` and `balanced` are worth for a bundle: thresholds from one half of the speech, the curve on the other.

    python research/effort/choose.py BUNDLE --speech DEV.jsonl [--per-source 60] [-o FOLDER] [--store CHECKPOINT]

Every clip is encoded once, its letters read, and the decoder asked what it thinks of them and how it goes on from each place
that some margin keeps; text and seconds of every pair of thresholds follow from that. Seconds are the processor's, of one
thread, so that a busy machine can choose too. Thresholds: the pair that takes the least time of those whose WER is at most
1.03 (balanced) and 1.12 (fast) times that of "exact", on the first half. Prints both, and the same pairs on the second half;
writes `effort.json` and `effort.png` into FOLDER, and with `--store` the thresholds into a checkpoint's decode options
(`prunella.json`, `config.json` or `reference.json`), which bundles take over.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from prunella.device_runtime.base.files import whole_file
from prunella.device_runtime.decoding.beam_search import Beams
from prunella.device_runtime.decoding.effort import Letters, check_shortcut, deficits
from prunella.device_runtime.decoding.strategy import Decoded, Prefilled
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.transcriber import Transcriber
from prunella.evaluation.bootstrap import paired_difference
from prunella.evaluation.manifest import Utterance, read_manifest
from prunella.evaluation.word_errors import count_errors

ENTROPIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 9.0)
MARGINS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
WORTH = {"balanced": 1.03, "fast": 1.12}  # times the WER of "exact"
Pair = tuple[float, float]


def finished(steps: Generator[str, None, Decoded]) -> Decoded:
    """What a `Decoding` comes to."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            decoded: Decoded = done.value
            return decoded


def heard(transcriber: Transcriber, clip: Utterance) -> dict[str, Any]:
    """Seconds and texts of one clip: by letters, exactly, and from every place that a margin keeps."""
    engine: Any
    engine, prompt, tokenizer = transcriber.engine, transcriber.prompt, transcriber.tokenizer
    alphabet, end = transcriber.audio.ctc_alphabet, list(prompt.eos_ids)
    decoding = Beams(engine, tokenizer, end, alphabet, transcriber.options)
    letters = Letters(alphabet, tokenizer)
    behind = (prompt.after_ids,) if prompt.languages else ()
    samples = clip.load()
    times = [time.process_time()]
    embeddings = engine.encode(samples)
    log_probabilities = engine.ctc_log_probs
    assert log_probabilities is not None
    spelled = letters.read(log_probabilities)
    times.append(time.process_time())
    first = engine.start(embeddings, *behind).copy()
    times.append(time.process_time())
    losses = [math.inf]
    if spelled.tokens:
        losses = deficits(first, engine.extend(spelled.tokens), spelled.tokens, end)
    times.append(time.process_time())
    cap = transcriber.options.token_cap(transcriber.audio.heard_seconds(len(samples)))

    def going_on(kept: int) -> tuple[str, float]:
        logits = engine.start(embeddings, *behind)
        if kept:
            logits = engine.extend(spelled.tokens[:kept])[-1].copy()
        began = time.process_time()
        begun = Prefilled(embeddings, logits, log_probabilities, cap, begun=spelled.tokens[:kept])
        return finished(decoding.decode(begun)).text, time.process_time() - began

    kept = {
        margin: next((i for i, loss in enumerate(losses) if loss > margin), len(losses)) for margin in MARGINS
    }
    on = {place: going_on(place) for place in {0, *kept.values()} if place <= len(spelled.tokens)}
    encode, prefill, verify = (later - before for before, later in itertools.pairwise(times))
    exact, decode = on[0]
    found: dict[str, Any] = {
        "clip": clip.id,
        "source": clip.source,
        "entropy": spelled.entropy,
        "sure": [spelled.text, encode],
        "exact": [exact, encode + prefill + decode],
        "margins": {},
    }
    for margin, place in kept.items():
        text, more = on.get(place, (spelled.text, 0.0))
        found["margins"][margin] = [text, encode + prefill + verify + more]
    errors = {
        text: count_errors(clip.text, text).words
        for text in {exact, spelled.text, *(t for t, _ in on.values())}
    }
    found["words"] = errors[exact].reference
    found["errors"] = {text: counts.errors for text, counts in errors.items()}
    return found


def chosen(one: dict[str, Any], pair: Pair | None) -> tuple[int, float]:
    """Wrong words and seconds of a clip; None: as "exact"."""
    if pair is None:
        text, seconds = one["exact"]
    elif one["entropy"] <= pair[0] and one["sure"][0]:
        text, seconds = one["sure"]
    else:
        text, seconds = one["margins"][pair[1]]
    return one["errors"][text], seconds


def outcome(clips: Sequence[dict[str, Any]], pair: Pair | None) -> dict[str, float]:
    """WER in percent and seconds a clip."""
    found = [chosen(one, pair) for one in clips]
    words = sum(one["words"] for one in clips)
    return {
        "wer": 100 * sum(errors for errors, _ in found) / words,
        "seconds": sum(seconds for _, seconds in found) / len(clips),
        "letters_alone": 0.0
        if pair is None
        else sum(one["entropy"] <= pair[0] and bool(one["sure"][0]) for one in clips) / len(clips),
    }


def choose(clips: Sequence[dict[str, Any]]) -> dict[str, Pair]:
    """The pair of each effort that takes the least time."""
    exact = outcome(clips, None)["wer"]
    pairs = {
        (entropy, margin): outcome(clips, (entropy, margin)) for entropy in ENTROPIES for margin in MARGINS
    }
    found: dict[str, Pair] = {}
    for effort, times in WORTH.items():
        good = [pair for pair, one in pairs.items() if one["wer"] <= exact * times] or [(0.0, 0.0)]
        found[effort] = min(good, key=lambda pair: (pairs[pair]["seconds"], pair))
    return found


def draw(clips: Sequence[dict[str, Any]], pairs: dict[str, Pair], path: Path) -> None:
    """WER against time on speech that chose nothing."""
    figure, axes = pyplot.subplots(figsize=(8, 4.8), dpi=130)
    for margin, color in ((0.5, "#8a8499"), (2.0, "#2f8f6b"), (6.0, "#6d3fc0")):
        points = [outcome(clips, (entropy, margin)) for entropy in ENTROPIES]
        axes.plot(
            [one["seconds"] for one in points],
            [one["wer"] for one in points],
            ".-",
            color=color,
            label=f"margin {margin:g} nats, entropy 0 to 9",
        )
    for name, pair in {"exact": None, **pairs}.items():
        one = outcome(clips, pair)
        axes.plot(one["seconds"], one["wer"], "o", color="#c0392b", markersize=8)
        axes.annotate(name, (one["seconds"], one["wer"]), textcoords="offset points", xytext=(6, 6))
    axes.set_xlabel("seconds a clip")
    axes.set_ylabel("words wrong, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.set_title("What --effort costs and saves", loc="left", fontsize=12, fontweight="bold")
    figure.tight_layout()
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")
    pyplot.close(figure)


def store(folder: Path, options: dict[str, float]) -> Path:
    """Put the thresholds into a checkpoint's decode options."""
    for name in ("reference.json", "prunella.json", "config.json"):
        file = folder / name
        if file.is_file():
            body = json.loads(file.read_text(encoding="utf-8"))
            body["decode"] = {**body.get("decode", {}), **options}
            with whole_file(file) as partial:
                partial.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            return file
    raise SystemExit(f"{folder} holds no checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--speech", required=True)
    parser.add_argument("--per-source", type=int, default=60)
    parser.add_argument("--engine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--store", type=Path)
    args = parser.parse_args()
    transcriber = open_transcriber(args.bundle, engine=args.engine, threads=args.threads).with_options(
        beams=0
    )
    check_shortcut(transcriber.engine, transcriber.prompt, "fast")
    transcriber.warm_up()
    manifest = (
        read_manifest(args.speech).at_most(transcriber.audio.max_seconds).limit(args.per_source, seed=0)
    )
    clips = []
    for number, clip in enumerate(manifest.utterances):
        clips.append(heard(transcriber, clip))
        if number % 20 == 0:
            sys.stderr.write(f"\r{number} of {len(manifest)}")
    first, second = clips[::2], clips[1::2]
    pairs = choose(first)
    result: dict[str, Any] = {"clips": [len(first), len(second)], "exact": outcome(second, None)}
    before = [float(chosen(one, None)[0]) for one in second]
    words = [float(one["words"]) for one in second]
    for effort, pair in pairs.items():
        now = [float(chosen(one, pair)[0]) for one in second]
        change = paired_difference(before, now, words)
        result[effort] = {
            "entropy": pair[0],
            "margin": pair[1],
            **outcome(second, pair),
            "difference": [round(100 * value, 2) for value in (change.difference, change.low, change.high)],
        }
    options = {
        f"{effort}_{kind}": pair[place]
        for effort, pair in pairs.items()
        for place, kind in enumerate(("entropy", "margin"))
    }
    print(
        json.dumps(
            {
                **result,
                "on the first half": {
                    "exact": outcome(first, None),
                    **{e: outcome(first, p) for e, p in pairs.items()},
                },
                "decode": options,
            },
            indent=2,
        )
    )
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "effort.json").write_text(
            json.dumps({"result": result, "clips": clips}) + "\n", encoding="utf-8"
        )
        draw(second, pairs, args.out / "effort.png")
    if args.store is not None:
        print(f"stored in {store(args.store, options)}")


if __name__ == "__main__":
    main()
