"""The target profiles: list them, show one, say which this machine is, and what it lacks for one.

`prunella targets list`, `prunella targets show jetson-orin-nano`, `prunella targets detect`,
`prunella targets check raspberry-pi-5 --bundle out/pi`. A name may be the path of a .toml of your own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunella.device_runtime.base.install_lines import fill_in, wheel_name
from prunella.device_runtime.bundle import open_bundle
from prunella.targets.check import check_target
from prunella.targets.detect import detect
from prunella.targets.machine import read_machine
from prunella.targets.profile import list_targets, load_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella targets`."""
    verbs = parser.add_subparsers(dest="what", title="verbs (default: list)")
    parser.set_defaults(what="list")
    verbs.add_parser("list", help="the built-in targets, one a line")
    show = verbs.add_parser("show", help="everything known about one target, its install lines last")
    show.add_argument("name", help="a target's name, or the path of a .toml")
    find = verbs.add_parser("detect", help="the target that this machine is; why, on stderr")
    find.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="TOML",
        help="consider this profile too (may be repeated)",
    )
    check = verbs.add_parser(
        "check",
        help="what this machine lacks for a target; exit code 1 if it lacks what its first engine needs",
    )
    check.add_argument("name", help="a target's name, or the path of a .toml")
    check.add_argument(
        "--bundle", type=Path, help="also whether this bundle fits, and how fast it can be at most"
    )
    for verb in (show, find, check):
        verb.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Entry of `prunella targets`."""
    return {"list": _list, "show": _show, "detect": _detect, "check": _check}[args.what](args)


def _list(args: argparse.Namespace) -> int:
    names = list_targets()
    width = max(map(len, names))
    for name in names:
        sys.stdout.write(f"{name:<{width}}  {load_target(name).description}\n")
    return 0


def _show(args: argparse.Namespace) -> int:
    values = asdict(load_target(args.name))
    values["install"] = [fill_in(line, elsewhere=True) for line in values["install"]]
    if args.json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return 0
    lines = values.pop("install")
    rows = list(_flat(values))
    width = max(len(key) for key, _ in rows)
    for key, text in rows:
        sys.stdout.write(f"{key:<{width}}  {text}\n")
    sys.stdout.write(
        f"# on the device, beside {wheel_name()}, which `make wheels` writes into dist/ of a checkout:\n"
    )
    sys.stdout.write("".join(f"$ {line}\n" for line in lines))
    return 0


def _detect(args: argparse.Namespace) -> int:
    machine = read_machine()
    targets = [load_target(name) for name in (*list_targets(), *args.profile)]
    ranked = detect(targets, machine)
    best = ranked[0]
    if args.json:
        matches = {
            match.target.name: {
                "fits": match.fits,
                "score": match.score,
                "holds": match.holds,
                "fails": match.fails,
            }
            for match in ranked
        }
        body = {"target": best.target.name, "machine": asdict(machine), "matches": matches}
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        return 0
    sys.stderr.write(f"{best.target.name}, because {'; '.join(best.holds)}\n")
    for match in ranked[1:]:
        why = (
            f"less exact ({'; '.join(match.holds)})"
            if match.fits
            else "; ".join(match.fails) or "states no rules"
        )
        sys.stderr.write(f"not {match.target.name}: {why}\n")
    sys.stdout.write(f"{best.target.name}\n")
    return 0


def _check(args: argparse.Namespace) -> int:
    bundle = open_bundle(args.bundle, verify=False) if args.bundle else None
    target = load_target(args.name)
    findings = check_target(target, read_machine(), bundle)
    lacks = any(finding.needed and not finding.ok for finding in findings)
    if args.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            state = "ok" if finding.ok else "MISSING" if finding.needed else "absent"
            sys.stdout.write(f"{state:<7}  {finding.what:<{width}}  {finding.detail}\n")
        if lacks:
            sys.stdout.write("".join(f"$ {fill_in(line)}\n" for line in target.install))
    return int(lacks)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Rows for people: nested tables as dotted keys, what is not set left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in ("", ()):
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
