"""Options as environment variables: `--max-seconds 60` is `PRUNELLA_MAX_SECONDS=60`, BUNDLE is `PRUNELLA_BUNDLE`.

`PRUNELLA_API_KEY_FILE=/run/secrets/key` takes the value from a file. Words on the command line win; a list is separated by commas.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.suggestions import did_you_mean

PREFIX, FILE = "PRUNELLA_", "_FILE"
VERBS = ("serve", "listen")  # whose options are variables: those that run as services
OTHERS = (
    "CACHE",
    "TRACEBACK",
    "TCMALLOC",
    "CI",
    "DEVICE_PYTHON",
    "TEST_TRACE",
    "RELEASE",
)  # not options, but known
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def variable(action: argparse.Action) -> str | None:
    """The variable of an argument; None for those that have none: help, standard input."""
    long = [name for name in action.option_strings if name.startswith("--") and len(name) > 2]
    if action.option_strings:
        name = max(long, key=len, default="").removeprefix("--")
        return f"{PREFIX}{name.replace('-', '_').upper()}" if name and name != "help" else None
    return f"{PREFIX}{action.dest.upper()}" if action.nargs == "?" else None


def words_of_environment(
    arguments: Sequence[argparse.Action], environ: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """What the environment says.

    Args:
        arguments: of a verb.
        environ: by default this process's.

    Returns:
        Words to put before those of the command line, and values of positionals by their `dest`.

    Raises:
        UsageError: a value that its option does not take, a file that cannot be read, or a variable twice.
    """
    environ = os.environ if environ is None else environ
    words: list[str] = []
    positionals: dict[str, str] = {}
    for action in arguments:
        name = variable(action)
        value = None if name is None or name == f"{PREFIX}TRACEBACK" else _value(environ, name)
        if name is None or value is None:
            continue
        if not action.option_strings:
            positionals[action.dest] = value
        else:
            words += _words(action, name, value)
    return words, positionals


def unknown_variables(
    arguments: Iterable[argparse.Action], environ: Mapping[str, str] | None = None
) -> list[str]:
    """A line for each PRUNELLA_ variable that nothing here reads."""
    environ = os.environ if environ is None else environ
    known = {name for action in arguments if (name := variable(action))} | {
        f"{PREFIX}{name}" for name in OTHERS
    }
    lines = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name.removesuffix(FILE) not in known:
            hint = did_you_mean(name, known)
            lines.append(f"the variable {name} is not known{f': {hint}' if hint else ''}")
    return lines


def _value(environ: Mapping[str, str], name: str) -> str | None:
    given, file = environ.get(name), environ.get(f"{name}{FILE}")
    if given is not None and file:
        raise UsageError(f"{name} and {name}{FILE} are both set: leave one out")
    if file:
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{name}{FILE} names {file}, which cannot be read ({error}): name a file that can"
            ) from error
    return given


def _words(action: argparse.Action, name: str, value: str) -> list[str]:
    option = max(action.option_strings, key=len)
    lowered = value.strip().lower()
    if action.nargs == 0:
        if lowered not in (*_YES, *_NO):
            raise UsageError(f"{name} is {value!r}: give 1 or 0")
        return [option] if lowered in _YES else []
    if action.nargs == "?" and lowered in (*_YES, *_NO):
        return [option] if lowered in _YES else []
    if not value.strip():
        return []  # as a template leaves it that was not filled in
    listed = isinstance(action, argparse._AppendAction)  # noqa: SLF001  (argparse offers no other way to tell)
    values = [one.strip() for one in value.split(",") if one.strip()] if listed else [value]
    for one in values:
        if callable(action.type):
            try:
                action.type(one)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                raise UsageError(f"{name} is {value!r}, which {option} does not take ({error})") from error
    return [f"{option}={one}" for one in values]
