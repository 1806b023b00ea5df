"""Standard streams that end no run: closed ones (cron, pythonw), and encodings that cannot write a file's name."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from prunella.device_runtime.base.errors import UsageError

_ESCAPE = "prunella-escape"


def prepare_streams() -> None:
    """Give a closed stream a null device, let stdout and stderr write every letter, and no loss of stderr end a run.

    What the encoding lacks is written as \\uXXXX, a pair of them beyond 16 bits: JSON stays JSON with it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # First come, lowest number: 0 to 2 are taken before a file or a library can get them.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    codecs.register_error(_ESCAPE, _escape)
    log = sys.__stderr__
    if log is not None and sys.stderr is log and not log.isatty():  # not one that somebody else reads
        lossy = io.BufferedWriter(_Lossy(log.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(lossy, log.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors=_ESCAPE)


class _Lossy(io.FileIO):
    """A file that forgets what it cannot take: a full disk under a log is no reason to lose the result."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data))


def piped() -> BinaryIO:
    """Standard input as bytes.

    Raises:
        UsageError: it is a terminal, from which no audio comes: the program would wait for ever.
    """
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal: pipe a recording into it, or name a file")
    return sys.stdin.buffer


def silence(*names: str) -> None:
    """What is still buffered in the streams of these names goes nowhere, so that the end of the process says nothing."""
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    parts = []
    for letter in error.object[error.start : error.end]:
        units = letter.encode("utf-16-be", "surrogatepass")
        parts += [f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)]
    return "".join(parts), error.end
