"""What this device lacks: engine and providers, microphone, heat, power, memory, clock, services; a line of remedy for each.

    prunella doctor            on a device: of its installed release
    prunella doctor BUNDLE

`ok` is as it should be; `absent` is what the machine does not have, which is no fault; `warning` costs speed or comes back;
`FAULT` keeps it from working, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from prunella.deployment import health
from prunella.deployment.health import Health
from prunella.deployment.service_health import services
from prunella.device_runtime import serve
from prunella.device_runtime.base.argument_parser import ArgumentParser
from prunella.device_runtime.base.errors import PrunellaError
from prunella.device_runtime.base.ready_bundle import find_ready_bundle
from prunella.device_runtime.bundle import Bundle, open_bundle
from prunella.targets.detect import detect
from prunella.targets.machine import read_machine
from prunella.targets.profile import TargetProfile, list_targets, load_target


def examine(
    bundle_path: str | Path | None = None, root: Path = Path("/"), *, microphone: bool = True
) -> tuple[Health, ...]:
    """Look at everything; what cannot be looked at is a finding, never an error.

    Args:
        bundle_path: by default the installed one, if there is one.
        root: where `proc/` and `sys/` are.
        microphone: open it, for half a second.
    """
    findings: list[Health] = []
    target = _target(root, findings)
    bundle = _bundle(bundle_path, findings)
    findings += health.engines(bundle)
    findings += health.opening(bundle)
    if microphone:
        findings += health.microphone()
    findings += health.temperature(root)
    findings += health.power(root)
    findings += health.memory(bundle, target)
    findings += health.clock(root)
    findings += services()
    parser = ArgumentParser()
    serve.add_arguments(parser)
    findings += health.variables(parser.arguments)
    return tuple(findings)


def report(findings: Sequence[Health]) -> str:
    """One line a finding, the remedies below theirs."""
    width = max(len(one.what) for one in findings)
    lines = []
    for one in findings:
        state = "FAULT" if one.state == "fault" else one.state
        lines.append(f"{state:<7}  {one.what:<{width}}  {one.detail}")
        if one.remedy and one.state != "absent":
            lines.append(f"{'':<7}  {'':<{width}}  → {one.remedy}")
    return "\n".join(lines)


def _target(root: Path, findings: list[Health]) -> TargetProfile | None:
    machine = read_machine(root)
    try:
        best = detect([load_target(name) for name in list_targets()], machine)[0]
    except PrunellaError as error:
        findings.append(Health("machine", "absent", str(error)))
        return None
    findings.append(Health("machine", "ok", f"{best.target.name} ({'; '.join(best.holds)})"))
    return best.target


def _bundle(path: str | Path | None, findings: list[Health]) -> Bundle | None:
    place = path or os.environ.get("PRUNELLA_BUNDLE") or find_ready_bundle()
    if place is None:
        return None
    try:
        return open_bundle(place)
    except PrunellaError as error:
        findings.append(Health("bundle", "fault", str(error), "install the archive of `prunella pack` again"))
        return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella doctor`."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="a bundle (default: the installed one)")
    parser.add_argument("--no-microphone", action="store_true", help="do not open the microphone")
    parser.add_argument("--json", action="store_true", help="one JSON object a finding")


def run(args: argparse.Namespace) -> int:
    """`prunella doctor`."""
    findings = examine(args.bundle, microphone=not args.no_microphone)
    if args.json:
        sys.stdout.write("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in findings))
    else:
        sys.stdout.write(f"{report(findings)}\n")
    return int(any(one.state == "fault" for one in findings))
