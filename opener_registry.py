"""What opens a kind of system that evaluation and benchmarks take by name; rooms above theirs are entered here.

A module of its own at the very bottom, so that whoever asks imports nothing of what is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Opener:
    """How one kind of system is opened; both import what they need only when they are called.

    Attributes:
        open: name, and by keyword what was asked for (`threads`; `engine` of bundles) → what has
            `transcribe(samples) -> Transcript`.
        find: name → the folder that it stands for, whose files decide what is heard.
    """

    open: Callable[..., Any]
    find: Callable[[str], Path]


OPENERS: dict[str, Opener] = {}


def register_opener(kind: str, opener: Opener) -> None:
    """Open systems of this kind so, in place of any opener before."""
    OPENERS[kind] = opener
