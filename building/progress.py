"""A step of a build, and what is said while the steps are done: which of how many, and about how long the rest will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


@dataclass(frozen=True)
class Step:
    """Makes `artefact`, for which those in `needs` must be there."""

    name: str
    artefact: Path
    needs: tuple[Path, ...]
    make: Callable[[], object]
    weight: float = 1.0  # its time beside that of the others, roughly
    seconds: float | None = None  # its time where it is known beforehand: it has no weight then


def announced(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps in turn, named in a bar on stderr; where that is no terminal, each that is left to do gets a line."""
    done: list[tuple[Step, float]] = []
    left = [step for step in steps if not step.artefact.exists()]
    bar_format = "step {n} of {total}: {desc} [{elapsed}]"
    with tqdm(total=len(steps), file=sys.stderr, disable=None, bar_format=bar_format) as bar:
        for number, step in enumerate(steps, start=1):
            due = not step.artefact.exists()
            rest = seconds_left(done, left)
            said = f"{step.name}{f', {_about(rest)} left in all' if due and rest is not None else ''}"
            bar.n = number
            bar.set_description_str(said)
            if bar.disable and due:
                sys.stderr.write(f"step {number} of {len(steps)}: {said}\n")
            started = time.monotonic()
            yield step
            if due:
                done.append((step, time.monotonic() - started))
                left.remove(step)


def seconds_left(done: Sequence[tuple[Step, float]], left: Sequence[Step]) -> float | None:
    """Of the steps that are left, as those that are done suggest; None before any of them is.

    Args:
        done: steps with the seconds that each took.
        left: the others.
    """
    weighed = [(step.weight, seconds) for step, seconds in done if step.seconds is None]
    if not weighed:
        return None
    rate = sum(seconds for _, seconds in weighed) / sum(weight for weight, _ in weighed)
    return sum(rate * step.weight if step.seconds is None else step.seconds for step in left)


def _about(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"about {minutes} minutes"
        if minutes > 1
        else "about a minute"
        if seconds > 45
        else "less than a minute"
    )
