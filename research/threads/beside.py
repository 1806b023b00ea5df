"""An engine beside busy loops: the time for the same clips with threads that adapt, and with every fixed number of them.

    python research/threads/beside.py BUNDLE --speech examples/clips/evaluation.jsonl
    python research/threads/beside.py BUNDLE --speech ... --other OTHER_PYTHON     beside another version of prunella as well

Every way runs in a process of its own, all at the same time; a turn is some clips in a row, the ways take turns, and their order is turned round
each time. All calls count, those too in which the threads were still adapting. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prunella.device_runtime.base.cores import physical_cores
from prunella.evaluation.manifest import read_manifest
from prunella.evaluation.table import render_table

LOOP = ("sh", "-c", 'while kill -0 "$PPID"; do :; done')  # ends with this program, however that ends
# What a process runs: the engine, then the seconds of every file that it is told. It knows earlier versions of prunella too.
CHILD = """
import os, sys, time
answers = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
from prunella.evaluation.systems import open_system
try:
    from prunella.device_runtime.sound.audio import load_audio
except ImportError:
    from prunella.device_runtime.audio import load_audio
bundle, threads, beams = sys.argv[1:]
one = open_system(bundle, threads=int(threads) if threads else None).system
one = one.with_options(beams=int(beams)) if hasattr(one, "with_options") else one.following(int(beams))
for path in sys.stdin:
    samples = load_audio(path.strip())
    began = time.perf_counter()
    for text in one.stream(samples):
        pass
    assert text
    print(time.perf_counter() - began, file=answers, flush=True)
"""


class Process:
    """An engine in a process of its own; a context manager that ends it."""

    def __init__(self, bundle: str, threads: int | None, beams: int, python: str) -> None:
        command = [python, "-c", CHILD, bundle, str(threads or ""), str(beams)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, path: Path) -> float:
        """To transcribe a file."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(f"{path}\n")
        self._child.stdin.flush()
        return float(self._child.stdout.readline())

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()


@dataclass
class Way:
    """A process, and the seconds that its turns took, by busy loops."""

    name: str
    fixed: bool
    process: Process
    turns: dict[int, list[float]] = field(default_factory=dict)

    def turn(self, loops: int, clips: Sequence[Path]) -> None:
        """Transcribe all clips, one after the other."""
        took = sum(self.process.seconds(clip) for clip in clips)
        self.turns.setdefault(loops, []).append(took)


@contextlib.contextmanager
def busy(loops: int, before: Sequence[str] = ()) -> Iterator[None]:
    """So many programs that do nothing but use a core."""
    running = [subprocess.Popen([*before, *LOOP]) for _ in range(loops)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def measure(
    bundle: str,
    clips: Sequence[Path],
    *,
    beams: int,
    loops: Sequence[int],
    turns: int,
    other: str | None = None,
    before: Sequence[str] = (),
) -> list[Way]:
    """All ways, beside every number of busy loops.

    Args:
        bundle: what is opened, as `prunella bench` takes it.
        clips: of a turn.
        beams: transcripts that are followed.
        loops: numbers of busy loops, in turn.
        turns: of each way beside each of them.
        other: a Python that has another version of prunella; it chooses its threads itself.
        before: of a loop's command, such as `nice -n 19`.
    """
    with contextlib.ExitStack() as stack:
        ways = []
        for name, threads, python in [
            ("adapting", None, sys.executable),
            *((str(count), count, sys.executable) for count in range(1, physical_cores() + 1)),
            *([("other", None, other)] if other else []),
        ]:
            process = stack.enter_context(Process(bundle, threads, beams, python))
            process.seconds(clips[0])
            ways.append(Way(name, threads is not None, process))
        for count in loops:
            with busy(count, before):
                for turn in range(turns):
                    for way in reversed(ways) if turn % 2 else ways:
                        way.turn(count, clips)
    return ways


def rows(ways: Sequence[Way], beams: int) -> Iterator[list[str]]:
    """Beside every number of loops: seconds a turn, and what adapting takes for each second of the best fixed number's."""
    for loops in ways[0].turns:
        means = {way.name: statistics.mean(way.turns[loops]) for way in ways}
        best = min((way for way in ways if way.fixed), key=lambda way: means[way.name])
        row = [str(beams), str(loops), *(f"{means[way.name]:.2f}" for way in ways)]
        row += [f"{means['adapting'] / means[best.name]:.2f} ({_spread(ways[0], best, loops)})"]
        if not ways[-1].fixed and len(ways) > 1:
            row += [f"{means['adapting'] / means['other']:.2f} ({_spread(ways[0], ways[-1], loops)})"]
        yield row


def _spread(way: Way, base: Way, loops: int) -> str:
    ratios = [a / b for a, b in zip(way.turns[loops], base.turns[loops], strict=True)]
    return f"{min(ratios):.2f}-{max(ratios):.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--speech", required=True, type=Path, metavar="MANIFEST")
    parser.add_argument("--limit", type=int, default=4, help="clips of a turn (default: %(default)s)")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--other", metavar="PYTHON", help="that has another version of prunella")
    parser.add_argument(
        "--loop-command", default="", metavar="WORDS", help="before each loop, such as 'nice -n 19'"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every turn's seconds")
    args = parser.parse_args(argv)
    clips = [one.audio for one in read_manifest(args.speech).utterances[: args.limit]]
    raw = []
    for beams in args.beams:
        ways = measure(
            args.bundle,
            clips,
            beams=beams,
            loops=args.loops,
            turns=args.turns,
            other=args.other,
            before=args.loop_command.split(),
        )
        header = ["beams", "busy loops", *(way.name for way in ways), "adapting / best fixed"]
        header += ["adapting / other"] if args.other else []
        sys.stdout.write(render_table(header, list(rows(ways, beams)), markdown=True) + "\n")
        sys.stdout.flush()
        raw += [{"beams": beams, "way": way.name, "turns": way.turns} for way in ways]
        if args.json:
            args.json.write_text(json.dumps(raw))
    return 0


if __name__ == "__main__":
    sys.exit(main())
