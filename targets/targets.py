"""List the target profiles, or show one.

`prunella targets list`, `prunella targets show x86-cpu`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from prunella.targets.profile import list_targets, load_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella targets`."""
    verbs = parser.add_subparsers(dest="what", required=True)
    verbs.add_parser("list", help="the built-in targets, one a line")
    show = verbs.add_parser("show", help="everything known about one target")
    show.add_argument("name", help="a target's name, or the path of a .toml")
    show.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> None:
    """Entry of `prunella targets`."""
    if args.what == "list":
        names = list_targets()
        width = max(map(len, names))
        for name in names:
            sys.stdout.write(f"{name:<{width}}  {load_target(name).description}\n")
        return
    values = asdict(load_target(args.name))
    if args.json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    rules = values.pop("match")
    values.update({f"match.{key}": value for key, value in rules.items()})
    width = max(map(len, values))
    for key, value in values.items():
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        sys.stdout.write(f"{key:<{width}}  {text}\n")
