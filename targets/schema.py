"""Reading profiles: TOML with `inherits`, checked against dataclasses, with errors that name file and key."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import msgspec

from prunella.device_runtime.base.errors import TargetError
from prunella.device_runtime.base.suggestions import did_you_mean
from prunella.device_runtime.engines.provider_options import (
    check_llama_option,
    check_provider,
    check_provider_option,
)
from prunella.targets.compute import KERNELS, ROWS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INHERITS = "inherits"
Table = dict[str, Any]


def read_merged(path: Path, kind: type, *, find: Callable[[str, Path], Path]) -> Table:
    """The keys of a file over those of what it inherits: tables are merged, other values replaced.

    Each file is checked against the dataclass `kind` by itself, so that an error names the file it stands in.

    Args:
        path: of the file.
        kind: what the merged table will be made into.
        find: (what `inherits` says, the file it stands in) → the parent's file.

    Raises:
        TargetError: unreadable, not TOML, inherits itself, a key unknown or of another type.
    """
    merged: Table = {}
    seen: list[Path] = []
    while True:
        if path.resolve() in seen:
            raise TargetError(f"{path}: '{INHERITS}' leads back to {path.name}: break the circle")
        seen.append(path.resolve())
        body = read_toml(path)
        parent = body.pop(INHERITS, None)
        typed_fields(body, kind, path, partial=True)
        merged = _over(merged, body)
        if parent is None:
            return merged
        if not isinstance(parent, str):
            raise TargetError(f"{path}: '{INHERITS}' must be a string, is {parent!r}")
        # A name is a file's own; all else comes from the parent where it is not given.
        merged.setdefault("name", None)
        try:
            path = find(parent, path)
        except TargetError as error:
            raise TargetError(f"{path}: '{INHERITS}': {error}") from error


def read_toml(path: Path) -> Table:
    """A file's own keys.

    Raises:
        TargetError: unreadable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"cannot read the target {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise TargetError(f"{path} is not valid TOML: {error}") from error


def typed_fields(body: Table, kind: type, path: Path, *, prefix: str = "", partial: bool = False) -> Table:
    """Values of a table by field name, each of the type that its field has, tables as dataclasses.

    Args:
        body: the table.
        kind: the dataclass.
        path: of the file, for the messages.
        prefix: of the table's keys, for the messages.
        partial: missing keys are no error.

    Raises:
        TargetError: a key missing, unknown or of another type.
    """
    hints = typing.get_type_hints(kind)
    known = {entry.name: entry for entry in fields(kind)}
    for key in body:
        if key not in known:
            hint = did_you_mean(key, known) or f"known keys: {', '.join(known)}"
            raise TargetError(f"{path}: unknown key '{prefix}{key}': {hint}")
    values: Table = {}
    for key, entry in known.items():
        if body.get(key) is None:
            required = entry.default is MISSING and entry.default_factory is MISSING
            if required and not partial:
                raise TargetError(f"{path}: the key '{prefix}{key}' is missing ({_word(hints[key])})")
            continue
        values[key] = _value(body[key], hints[key], f"{prefix}{key}", path, partial)
    return values


def _value(value: Any, hint: Any, key: str, path: Path, partial: bool) -> Any:
    where = f"{path}: '{key}'"
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise TargetError(f"{where} must be a table: write [{key}]")
        return hint(**typed_fields(value, hint, path, prefix=f"{key}.", partial=partial))
    if typing.get_origin(hint) not in (None, tuple):  # a mapping
        if not isinstance(value, dict):
            raise TargetError(f"{where} must be a table: write [{key}]")
        return _rates(value, key, path) if key == "compute.rates" else _options(value, key, path)
    try:
        converted = msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise TargetError(f"{where} must be {_word(hint)}, is {value!r}") from error
    if key == "providers":
        _complain(path, ((key, check_provider(name)) for name in converted))
    return converted


def _rates(value: Table, key: str, path: Path) -> dict[str, tuple[float, ...]]:
    """By kernel, of one row and of many."""
    found = {}
    for name, pair in value.items():
        family = name if name == "int8_rows" else name.partition("_")[0]
        if family not in KERNELS:
            raise TargetError(
                f"{path}: '{key}.{name}' is no kernel: {did_you_mean(name, KERNELS) or f'known are {chr(44).join(KERNELS)}'}"
            )
        try:
            found[name] = msgspec.convert(pair, tuple[float, ...])
        except msgspec.ValidationError as error:
            raise TargetError(f"{path}: '{key}.{name}' must be numbers") from error
        if len(found[name]) not in (2, len(ROWS)):
            raise TargetError(
                f"{path}: '{key}.{name}' must be 2 numbers, of {ROWS[0]} row and of {ROWS[-1]}, or {len(ROWS)}, of {ROWS}"
            )
        if min(found[name]) <= 0:
            raise TargetError(f"{path}: '{key}.{name}' must be above 0")
    return found


def _options(value: Table, key: str, path: Path) -> Table:
    if key == "llama":
        _complain(path, ((f"llama.{name}", check_llama_option(name, entry)) for name, entry in value.items()))
        return value
    for provider, options in value.items():
        _complain(path, [(f"{key}.{provider}", check_provider(provider))])
        if not isinstance(options, dict):
            raise TargetError(f"{path}: '{key}.{provider}' must be a table: write [{key}.{provider}]")
        _complain(
            path,
            (
                (f"{key}.{provider}.{name}", check_provider_option(provider, name, entry))
                for name, entry in options.items()
            ),
        )
    return value


def _complain(path: Path, findings: typing.Iterable[tuple[str, str | None]]) -> None:
    for key, fault in findings:
        if fault is not None:
            raise TargetError(f"{path}: '{key}' {fault}")


def _word(hint: Any) -> str:
    words = {str: "a string", int: "a whole number", float: "a number"}
    return words.get(hint, "a list of strings")


def _over(child: Table, parent: Table) -> Table:
    """The child's values, and the parent's where the child has none."""
    merged = dict(parent)
    for key, value in child.items():
        below = parent.get(key)
        merged[key] = _over(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged
