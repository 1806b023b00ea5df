"""What a command may ask of decoding, told without loading any of it."""

from __future__ import annotations

from prunella.device_runtime.base.errors import UsageError

PAYING_BEAMS = 4  # where a CTC head hears letters
MAX_BEAMS = 16  # on every engine: llama.cpp keeps no more caches
EFFORTS = ("fast", "balanced", "exact")  # see effort.py
MIN_SCORE = 0.15  # of a phrase, 0 to 1


def check_beams(beams: int | None) -> None:
    """Refuse a number of beams that no engine follows; None and 0 leave it to the system.

    Raises:
        UsageError: fewer than 0, or more than `MAX_BEAMS`.
    """
    if beams is not None and not 0 <= beams <= MAX_BEAMS:
        raise UsageError(f"{beams} beams are not possible: give 1 to {MAX_BEAMS}, or 0 for as many as pay")


def check_effort(effort: str | None) -> None:
    """Refuse an effort that nobody knows; None leaves it to the system.

    Raises:
        UsageError: it is none of `EFFORTS`.
    """
    if effort is not None and effort not in EFFORTS:
        raise UsageError(f"no effort '{effort}': choose one of {', '.join(EFFORTS)}")
