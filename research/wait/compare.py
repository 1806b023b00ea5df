"""How long two installed prunellas take for the same clips, in turns: machines drift by more than most changes gain.

    python research/wait/compare.py --old OLD/.venv/bin/python OLD_BUNDLE --new .venv/bin/python NEW_BUNDLE CLIP...

Each side is a process of its own interpreter with its own bundle. They take turns clip by clip, the order changing each
round, after one round that is not counted. One line a clip and setting: medians in seconds, the ratio of the medians, and
whether the texts are equal; then of the last clip where the time goes, and what a pass of the decoder takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("worker.py")


class Side:
    """One prunella with one bundle, in a process of its own."""

    def __init__(self, python: str, bundle: str, threads: int) -> None:
        command = [python, str(_WORKER), bundle, "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, clip: Path, beams: int) -> dict[str, Any]:
        """What `worker.py` answers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"clip": str(clip.resolve()), "beams": beams}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(sides: dict[str, Side], clips: list[Path], beams: list[int], rounds: int) -> None:
    """Print the table."""
    found: dict[tuple[str, Path, int], list[dict[str, Any]]] = {}
    for turn in range(rounds + 1):
        for clip in clips:
            for count in beams:
                for name in sorted(sides, reverse=turn % 2 == 0):
                    answer = sides[name].ask(clip, count)
                    if turn:
                        found.setdefault((name, clip, count), []).append(answer)
    for count in beams:
        for clip in clips:
            old, new = (_median(found[name, clip, count], "total") for name in ("old", "new"))
            texts = {name: found[name, clip, count][0]["text"] for name in sides}
            same = "same text" if texts["old"] == texts["new"] else f"texts differ: {texts}"
            print(
                f"{clip.name}, {count} beams: old {old:.3f} s, new {new:.3f} s, ratio {new / old:.3f}; {same}"
            )
    for count in beams:
        for name in sorted(sides, reverse=True):
            answers = found[name, clips[-1], count]
            parts = ", ".join(
                f"{part} {1e3 * _median(answers, part):.1f}" for part in ("encode", "prefill", "decode")
            )
            step = 1e3 * statistics.median(seconds for answer in answers for seconds in answer["steps"])
            whole = 1e3 * statistics.median(sum(answer["steps"]) for answer in answers)
            print(
                f"{clips[-1].name}, {count} beams, {name}: ms of {parts}; {len(answers[0]['steps'])} passes, "
                f"{whole:.1f} in all, {step:.2f} each (median)"
            )


def _median(answers: list[dict[str, Any]], key: str) -> float:
    return statistics.median(answer[key] for answer in answers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", nargs=2, required=True, metavar=("PYTHON", "BUNDLE"))
    parser.add_argument("--new", nargs=2, required=True, metavar=("PYTHON", "BUNDLE"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beams", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("clips", type=Path, nargs="+")
    args = parser.parse_args()
    sides = {"old": Side(*args.old, args.threads), "new": Side(*args.new, args.threads)}
    try:
        compare(sides, args.clips, args.beams, args.rounds)
    finally:
        for side in sides.values():
            side.close()


if __name__ == "__main__":
    main()
