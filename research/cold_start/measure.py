"""From the start of a process to its first line of text, for several commands in turn.

    python research/cold_start/measure.py --runs 11 \\
        before='OLD/bin/prunella transcribe BUNDLE clip.wav' after='.venv/bin/prunella transcribe BUNDLE clip.wav'

Each command is started once to warm the page cache and prunella's own cache, then all of them in turn. Seconds, median and
minimum: to the first line on stdout, to the end of the process, and of processor time; then each one's median over the first
command's. What a neighbour does to one it does to the next, so the ratios hold where the seconds do not.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time

COLUMNS = ("text", "end", "processor")


def start(command: list[str]) -> tuple[str, tuple[float, ...]]:
    """The first line, and the seconds of `COLUMNS`."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    text = time.perf_counter() - began
    process.stdout.read()
    if process.wait() != 0:
        raise SystemExit(f"{shlex.join(command)} failed: run it by itself to see why")
    end = time.perf_counter() - began
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return line.strip(), (text, end, processor)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="+", metavar="NAME=COMMAND")
    parser.add_argument("--runs", type=int, default=11)
    args = parser.parse_args()
    commands = {}
    for given in args.commands:
        name, _, command = given.partition("=")
        commands[name] = shlex.split(command)
    lines = {name: start(command)[0] for name, command in commands.items()}
    spent: dict[str, list[tuple[float, ...]]] = {name: [] for name in commands}
    for _ in range(args.runs):
        for name, command in commands.items():
            spent[name].append(start(command)[1])
    sys.stdout.write(
        f"{args.runs} runs, load {os.getloadavg()[0]:.1f}; median / minimum, ratio of the medians\n"
    )
    first = None
    for name, rows in spent.items():
        columns = [(statistics.median(column), min(column)) for column in zip(*rows, strict=True)]
        first = first or columns
        cells = [
            f"{label} {median:.3f} / {least:.3f} s ({median / first[place][0]:.2f})"
            for place, (label, (median, least)) in enumerate(zip(COLUMNS, columns, strict=True))
        ]
        sys.stdout.write(f"{name}: {', '.join(cells)}: {lines[name]}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
