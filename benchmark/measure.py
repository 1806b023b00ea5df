"""The process that is measured: load one system, transcribe the clips named on stdin, say what it took on stdout.

    python -m prunella.benchmark.measure SYSTEM < paths        one JSON line when loaded, one a clip, one at the end

A fresh process for every system, so that load time and peak memory are its own; it loads no more than the system needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from prunella.benchmark.conditions import peak_memory_bytes
from prunella.device_runtime.base.errors import PrunellaError
from prunella.device_runtime.engines.adaptive_threads import AdaptiveThreads
from prunella.device_runtime.engines.providers import require_all, unannounced
from prunella.device_runtime.sound.audio import load_audio
from prunella.device_runtime.transcript import Effort
from prunella.evaluation.systems import OpenedSystem, open_system

_SAMPLING_RATE = 16_000


def serve(
    system: str,
    paths: TextIO,
    results: TextIO,
    *,
    guards: bool = True,
    threads: int | None = None,
    beams: int | None = None,
    language: str | None = None,
    effort: Effort | None = None,
    strict: bool = False,
) -> None:
    """Answer every line of `paths` (a path as JSON string) with one JSON line, until its end.

    The first line of `results` has `disk_bytes` and the `missing` hardware, the last
    `peak_memory_bytes` and the fewest and most `threads` that worked. A PrunellaError ends it with a line
    `{"error": ..., "exit_code": ...}`.
    """
    try:
        with unannounced():  # who reads the results says it, once for all systems
            opened = open_system(
                system, guards=guards, threads=threads, beams=beams, language=language, effort=effort
            )
        engine = getattr(opened.system, "engine", None)
        if strict:
            require_all(engine)
        missing = [asdict(one) for one in getattr(engine, "missing", ())]
        _write(results, {"disk_bytes": opened.disk_bytes, "missing": missing})
        for line in paths:
            _write(results, _timed(opened, json.loads(line)))
    except PrunellaError as error:
        _write(results, {"error": str(error), "exit_code": error.exit_code})
        return
    counted = getattr(engine, "threads", None)
    used = [counted.fewest, counted.most] if isinstance(counted, AdaptiveThreads) else None
    _write(results, {"peak_memory_bytes": peak_memory_bytes(), "threads": used})


def _timed(opened: OpenedSystem, path: str) -> dict[str, Any]:
    samples = load_audio(path)
    start = time.perf_counter()
    transcript = opened.system.transcribe(samples)
    elapsed = time.perf_counter() - start
    timings = transcript.timings
    return {
        "audio_seconds": len(samples) / _SAMPLING_RATE,
        "total": elapsed,  # by our own clock: what a caller waits, whatever the system says of itself
        "encode": timings.encode,
        "prefill": timings.prefill,
        "decode": timings.decode,
        "first_token": timings.first_token,
        "tokens": len(transcript.tokens),
        "text": transcript.text,
        "engine": transcript.engine,
    }


def _write(results: TextIO, message: dict[str, Any]) -> None:
    results.write(json.dumps(message) + "\n")
    results.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the measured process."""
    parser = argparse.ArgumentParser(prog="python -m prunella.benchmark.measure", description=__doc__)
    parser.add_argument("system")
    parser.add_argument("--no-guards", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--beams", type=int)
    parser.add_argument("--language")
    parser.add_argument("--effort")
    parser.add_argument("--strict", action="store_true")
    args = parser.parse_args(argv)
    # Native libraries print to file descriptor 1: they get stderr, the results keep the real stdout.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results, contextlib.suppress(KeyboardInterrupt):
        os.dup2(2, 1)
        serve(
            args.system,
            sys.stdin,
            results,
            guards=not args.no_guards,
            threads=args.threads,
            beams=args.beams,
            language=args.language,
            effort=args.effort,
            strict=args.strict,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
