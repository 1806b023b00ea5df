"""One side of `compare.py`: opens a bundle with whatever prunella its interpreter has, and transcribes what it is told.

One JSON line for each line read: {"clip", "beams"} → {"text", "tokens", "total", "encode", "prefill", "decode", "steps"},
seconds; `steps`: those of every decoder pass behind the prefill.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import soundfile


def open_here(bundle: str, threads: int) -> Any:
    """A transcriber of any version since 682d73e."""
    try:
        from prunella.device_runtime.opening import open_transcriber
    except ImportError:
        from prunella.device_runtime.transcriber import open_transcriber  # type: ignore[attr-defined,no-redef]
    return open_transcriber(bundle, threads=threads)


def timed(call: Callable[..., Any], steps: list[float]) -> Callable[..., Any]:
    """`call`, which notes what each time took."""

    def run(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args)
        finally:
            steps.append(time.perf_counter() - began)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    opened = open_here(args.bundle, args.threads)
    steps: list[float] = []
    for name in ("step", "step_beams"):
        setattr(opened.engine, name, timed(getattr(opened.engine, name), steps))
    ways: dict[int, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        beams = asked["beams"]
        if beams not in ways:
            follow = getattr(opened, "following", None)
            ways[beams] = follow(beams) if follow else opened.with_options(beams=beams)
        samples, _ = soundfile.read(asked["clip"], dtype="float32")
        steps.clear()
        began = time.perf_counter()
        said = ways[beams].transcribe(samples)
        total = time.perf_counter() - began
        parts = {name: getattr(said.timings, name) for name in ("encode", "prefill", "decode")}
        print(
            json.dumps({"text": said.text, "tokens": said.tokens, "total": total, **parts, "steps": steps}),
            flush=True,
        )


if __name__ == "__main__":
    main()
