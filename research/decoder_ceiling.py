"""What a greedy token costs on ONNX Runtime, kernel by kernel, beside what the memory's bandwidth allows.

`python research/decoder_ceiling.py BUNDLE [--gguf BUNDLE] [--threads 1 2] [--json]`

For each number of threads: how fast this machine reads memory (numpy over 1 GiB, a thread each); a token of the bare
session with everything bound, by kernel, with what the weights of each kind weigh and the rate at which they go by; a token of
prunella's engine as a share of the bare loop; and with --gguf llama.cpp's bare `llama_decode` beside its engine. Steps are the
fastest of interleaved rounds, kernels medians: on a busy machine few are interrupted. "Of the bound" is the time that the weights would take at the measured bandwidth over the time taken; above 1
the machine was busy while it read, or its caches hold a part of the weights.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from prunella.device_runtime.bundle import Bundle, open_bundle
from prunella.device_runtime.engines.onnx_engine import DECODER, OnnxEngine

PAST = 60  # positions that are filled: prompt and some three seconds of audio
ROUNDS, STEPS = 8, 20
KINDS = (
    ("head", r"/lm_head/"),
    ("gate, up", r"/mlp/(gate|up)"),
    ("down", r"/mlp/down"),
    ("query, key, value", r"/attn/(qkv|q|k|v)_proj"),
    ("output", r"/attn/o_proj"),
)


def bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read together, the best of five rounds of two ways."""
    parts = [np.ones(2**28 // threads, np.float32) for _ in range(threads)]  # 1 GiB, beyond every cache
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for way in (np.max, np.sum) * 5:
            begin = time.perf_counter()
            list(pool.map(way, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - begin))
    return best


def stored_bytes(bundle: Bundle) -> dict[str, int]:
    """Bytes of the decoder's matrices as the kernels read them, by kind: integers and float32 scales."""
    graph = onnx.load(str(bundle.file(DECODER)), load_external_data=False).graph
    sizes = {one.name: int(np.prod(one.dims)) for one in graph.initializer}
    made = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    found: dict[str, int] = defaultdict(int)
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            scales = node.input[2]
            found[_kind(node.name)] += sizes[node.input[1]] + 4 * sizes[made.get(scales, scales)]
    return dict(found)


def _kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), "other matrices")


class BareLoop:
    """The decoder's graph with all buffers bound: nothing but `run_with_iobinding`."""

    def __init__(self, bundle: Bundle, threads: int, profile: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        path = str(bundle.file(DECODER))
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        spec = bundle.manifest.decoder
        self.binding = self.session.io_binding()
        self.kept: list[Any] = [
            np.random.default_rng(0).normal(0, 1, (1, 1, spec.hidden_size)).astype(np.float32),
            np.ones((1, PAST + 1), np.int64),
            np.array(1, np.int64),
            np.empty((1, 1, spec.vocab_size), np.float32),
        ]
        for name, array in zip(
            ("inputs_embeds", "attention_mask", "num_logits_to_keep"), self.kept, strict=False
        ):
            self.binding.bind_cpu_input(name, array)
        logits = self.kept[3]
        self.binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for layer in range(spec.num_layers):
            for part in ("key", "value"):
                cache = np.zeros((1, spec.num_kv_heads, 256, spec.head_dim), np.float32)
                value = onnxruntime.OrtValue.ortvalue_from_numpy(cache)
                self.binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
                self.binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
                self.kept += [cache, value]

    def step(self) -> None:
        """One token."""
        self.session.run_with_iobinding(self.binding)


def kernel_times(bundle: Bundle, threads: int) -> dict[str, float]:
    """Seconds of a token by kernel, and "between kernels": medians under ONNX Runtime's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        loop = BareLoop(bundle, threads, Path(folder) / "profile")
        for _ in range(ROUNDS * STEPS):
            loop.step()
        events = json.loads(Path(loop.session.end_profiling()).read_text(encoding="utf-8"))
    runs: list[dict[str, float]] = []
    current: dict[str, float] = defaultdict(float)
    for event in sorted(events, key=lambda one: one["ts"] + one.get("dur", 0)):
        if event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            kind = _kind(event["name"]) if operator == "MatMulNBits" else operator
            current[kind] += event["dur"] / 1e6
        elif event["name"] == "model_run":
            current["between kernels"] = event["dur"] / 1e6 - sum(current.values())
            runs.append(dict(current))
            current = defaultdict(float)
    runs = runs[len(runs) // 4 :]  # the first ones warm up
    names = {name for run in runs for name in run}
    return {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}


def interleaved(ways: Sequence[Callable[[], None]]) -> list[float]:
    """Seconds of each, taken in turns: the fastest, as another program can only add to it."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for way, taken in zip(ways, times, strict=True):
            for _ in range(STEPS // 4):  # the caches are full of another's weights
                way()
            for _ in range(STEPS):
                begin = time.perf_counter()
                way()
                taken.append(time.perf_counter() - begin)
    return [min(taken) for taken in times]


def engine_step(engine: Any, hidden: int) -> Callable[[], None]:
    """A step of an engine that always stands at the same place."""
    audio = np.random.default_rng(0).normal(0, 1, (PAST - 20, hidden)).astype(np.float32)
    engine.start(audio)

    def step() -> None:
        engine.step(5)
        engine.rewind(1)

    return step


def measure(bundle: Bundle, threads: int, gguf: Bundle | None) -> dict[str, Any]:
    """All figures for so many threads."""
    read = bandwidth(threads)
    weights = stored_bytes(bundle)
    engine = OnnxEngine.open(bundle, threads=threads)
    bare = BareLoop(bundle, threads)
    ways = [bare.step, engine_step(engine, bundle.manifest.decoder.hidden_size)]
    taken = interleaved(ways)
    total = sum(weights.values())
    found = {
        "threads": threads,
        "read_gb_per_s": read / 1e9,
        "weights_mb": total / 1e6,
        "bare_ms": taken[0] * 1e3,
        "engine_ms": taken[1] * 1e3,
        "engine_to_bare": taken[0] / taken[1],
        "of_the_bound": total / read / taken[0],
        "kernels": kernel_times(bundle, threads),
        "kernel_bytes": weights,
    }
    if gguf is not None:
        found |= _llama(gguf, threads)
    return found


def _llama(bundle: Bundle, threads: int) -> dict[str, float]:
    from prunella.device_runtime.engines.gguf_engine import GgufEngine

    engine = GgufEngine.open(bundle, threads=threads)
    step = engine_step(engine, bundle.manifest.decoder.hidden_size)
    decoder: Any = engine._decoder  # noqa: SLF001  # the bare call beneath it
    bare: list[float] = []
    library = decoder._library  # noqa: SLF001
    inner = library.llama_decode

    def timed(*args: Any) -> Any:
        begin = time.perf_counter()
        result = inner(*args)
        bare.append(time.perf_counter() - begin)
        return result

    library.llama_decode = timed
    try:
        (taken,) = interleaved([step])
    finally:
        library.llama_decode = inner
    once = min(bare)
    return {
        "llama_decode_ms": once * 1e3,
        "llama_engine_ms": taken * 1e3,
        "llama_engine_to_bare": once / taken,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{found['threads']} thread(s): memory is read at {found['read_gb_per_s']:.1f} GB/s; {found['weights_mb']:.1f} MB of weights a token; "
        f"bare loop {found['bare_ms']:.2f} ms, {found['of_the_bound']:.2f} of the bound; engine {found['engine_ms']:.2f} ms, "
        f"{found['engine_to_bare']:.2f} of the bare loop's speed",
        "",
        "| kernel | ms | MB | GB/s |",
        "| :-- | --: | --: | --: |",
    ]
    for kind, seconds in sorted(found["kernels"].items(), key=lambda pair: -pair[1]):
        size = found["kernel_bytes"].get(kind)
        rate = f"{size / 1e6:.1f} | {size / seconds / 1e9:.1f}" if size else " | "
        lines.append(f"| {kind} | {seconds * 1e3:.2f} | {rate} |")
    if "llama_decode_ms" in found:
        lines += [
            "",
            f"llama.cpp: `llama_decode` {found['llama_decode_ms']:.2f} ms, engine {found['llama_engine_ms']:.2f} ms, "
            f"{found['llama_engine_to_bare']:.2f} of its speed",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gguf", type=Path, metavar="BUNDLE", help="of the same model, for llama.cpp")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    gguf = open_bundle(args.gguf) if args.gguf else None
    for threads in args.threads:
        found = measure(open_bundle(args.bundle), threads, gguf)
        sys.stdout.write(f"{json.dumps(found)}\n" if args.json else f"{table(found)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
