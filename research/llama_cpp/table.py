"""One table: every storage of a model on ONNX Runtime and llama.cpp, by WER, size, speed and memory.

    python research/llama_cpp/table.py reference out/pruned --speech DEV.jsonl --seconds 18 -o out/llama_cpp

Each model is exported once as float and quantised from there. A row that is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from prunella.benchmark.compare import measure
from prunella.device_runtime.bundle import open_bundle
from prunella.evaluation.evaluate import evaluate
from prunella.evaluation.manifest import SpeechManifest, read_manifest
from prunella.evaluation.systems import open_system
from prunella.evaluation.table import render_table
from prunella.export.export import export_float
from prunella.quantize.bundle_writer import requantize
from prunella.speech_llm import load
from prunella.speech_llm.process import tune

RECIPES = ("fp32", "int8", "int4", "F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0")
COMPATIBLE = ("F16", "Q4_K_M")  # through libmtmd too
BENCH_CLIPS = 6
HEADER = [
    "model",
    "storage",
    "path",
    "WER % (95 %)",
    "decoder MB",
    "bits/weight",
    "tokens/s",
    "first token s",
    "peak MB",
]


@dataclass(frozen=True)
class Row:
    """One system."""

    model: str
    recipe: str
    path: str  # "ONNX Runtime", "llama.cpp, fast" or "llama.cpp, compatible"
    wer: float
    wer_low: float
    wer_high: float
    decoder_bytes: int
    bits_per_weight: float | None
    tokens_per_second: float | None
    first_token_seconds: float | None
    peak_bytes: int | None

    def cells(self) -> list[str]:
        """As shown."""
        wer = f"{100 * self.wer:.1f} ({100 * self.wer_low:.1f}-{100 * self.wer_high:.1f})"
        bits = "-" if self.bits_per_weight is None else f"{self.bits_per_weight:.2f}"
        return [
            self.model,
            self.recipe,
            self.path,
            wer,
            f"{self.decoder_bytes / 1e6:.0f}",
            bits,
            f"{self.tokens_per_second or 0:.0f}",
            f"{self.first_token_seconds or 0:.3f}",
            f"{(self.peak_bytes or 0) / 1e6:.0f}",
        ]


def bundles(model: str, target: str, out: Path) -> dict[str, Path]:
    """Recipe → bundle, made where it is not there yet."""
    name = Path(model).name
    floats = out / f"{name}-fp32+F16"
    if not floats.exists():
        export_float(load(model), target, floats, recipe="fp32+F16")
    made = {}
    for recipe in RECIPES:
        made[recipe] = out / f"{name}-{recipe}"
        if not made[recipe].exists():
            requantize(open_bundle(floats), recipe, made[recipe])
    return made


def measure_row(
    model: str, recipe: str, bundle: Path, engine: str, speech: SpeechManifest, threads: int
) -> Row:
    """Time a system in a process of its own, then evaluate it."""
    system = f"{bundle}@{engine}"
    shortest = sorted(speech.utterances, key=lambda clip: clip.duration)[:BENCH_CLIPS]
    few = SpeechManifest(speech.path, tuple(shortest))
    record = measure([system], few, repeat=3, threads=threads).records[0]
    opened = open_system(system, threads=threads)
    total = evaluate(opened.system, speech, score=False, name=system, fingerprint=opened.fingerprint).overall
    manifest = open_bundle(bundle, verify=False).manifest
    parts = ("gguf/decoder",) if engine != "onnx" else ("onnx/decoder", "onnx/embed")
    return Row(
        model=model,
        recipe=recipe,
        path={"onnx": "ONNX Runtime", "gguf": "llama.cpp, fast", "mtmd": "llama.cpp, compatible"}[engine],
        wer=total.wer,
        wer_low=total.wer_low,
        wer_high=total.wer_high,
        decoder_bytes=sum(entry.bytes for name, entry in manifest.files.items() if name.startswith(parts)),
        bits_per_weight=manifest.provenance.get("gguf", {}).get("bits_per_weight"),
        tokens_per_second=record.decode_tokens_per_second,
        first_token_seconds=record.first_token_seconds,
        peak_bytes=record.peak_memory_bytes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="'reference', checkpoint folders or Hugging Face ids")
    parser.add_argument(
        "--speech", required=True, type=Path, help="manifest of speakers that were not trained on"
    )
    parser.add_argument("--source", action="append", default=[], help="only this source of the manifest")
    parser.add_argument("--seconds", type=float, help="only clips of at most so many seconds")
    parser.add_argument("--limit", type=int, help="the first N clips of every source")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="x86-cpu")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    speech = read_manifest(args.speech).select(
        sources=args.source, max_seconds=args.seconds, limit=args.limit
    )
    rows = []
    for model in args.models:
        for recipe, bundle in bundles(model, args.target, args.out).items():
            engine = "onnx" if recipe.islower() else "gguf"
            for one in (engine, "mtmd") if recipe in COMPATIBLE else (engine,):
                name = Path(model).name
                file = args.out / "rows" / f"{name}-{recipe}-{one}.json"
                if not file.exists():
                    row = measure_row(name, recipe, bundle, one, speech, args.threads)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(asdict(row)))
                rows.append(Row(**json.loads(file.read_text())).cells())
    table = render_table(HEADER, rows, markdown=True)
    (args.out / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    tune()
    main()
