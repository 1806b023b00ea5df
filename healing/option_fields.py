"""Settings that become options of a command: a dataclass field says its own help text, and the parser is made from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What a field says of its option; its type and its default are the field's own."""

    help: str
    group: str
    metavar: str | None = None
    flag: str | None = None  # where it is not the field's name
    choices: tuple[Any, ...] | None = None


def option(
    default: Any,
    help: str,
    group: str,
    *,
    metavar: str | None = None,
    flag: str | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field that is an option of the command too.

    Args:
        default: None: the setting is left out unless it is given.
        help: gets "(default: ...)" behind it where it says nothing of a default itself.
        group: the heading of `--help` that it stands under.
        metavar: what stands for the value; with `choices` these.
        flag: the option's name where it is another than the field's, such as "--learning-rate".
        choices: the values that there are.
    """
    return field(default=default, metadata={_KEY: Option(help, group, metavar, flag, choices)})


def add_options(groups: Mapping[str, argparse._ArgumentGroup], settings: type) -> None:
    """Add an option for every field of `settings` that is one, each to the group that it names."""
    for one, kind in _options(settings):
        said: Option = one.metadata[_KEY]
        flag = said.flag or "--" + one.name.replace("_", "-")
        add = groups[said.group].add_argument
        if kind is bool:
            add(flag, dest=one.name, action="store_true", help=said.help)
            continue
        many = get_origin(kind) is tuple
        default: Any = one.default
        default = ",".join(default) if many else default
        silent = "default" in said.help or default is None
        add(
            flag,
            dest=one.name,
            type=str if many else kind,
            default=default,
            choices=said.choices,
            metavar=said.metavar,
            help=said.help if silent else f"{said.help} (default: %(default)s)",
        )


def option_values(args: argparse.Namespace, settings: type) -> dict[str, Any]:
    """What the parsed arguments say about the fields of `settings` that are options, by the fields' names."""
    values: dict[str, Any] = {}
    for one, kind in _options(settings):
        value = getattr(args, one.name)
        values[one.name] = _split(value) if get_origin(kind) is tuple else value
    return values


def _options(settings: type) -> Iterator[tuple[Field[Any], Any]]:
    """The fields that are options, each with the type of its value."""
    hints = get_type_hints(settings)
    for one in fields(settings):
        if _KEY in one.metadata:
            hint = hints[one.name]
            known = [kind for kind in get_args(hint) if kind is not NoneType]
            yield one, known[0] if NoneType in get_args(hint) else hint


def _split(text: str) -> Sequence[str]:
    return tuple(part.strip() for part in text.split(","))
