"""Install an unpacked archive beside what runs, prove it, and only then let it run: the transaction on the device.

`install.sh` calls it, after it has verified the files. Of the standard library alone, Python 3.9 and newer.

    PREFIX/releases/ID/        immutable: bundle, runtime, units, the clip of the self-test
    PREFIX/current, previous   links to releases, switched by rename(2)
    PREFIX/etc                 settings of services, and the keys that are trusted: they stay
    PREFIX/state               what was proven, and what was being switched when the power went
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# Beside this file in the archive.
import probe
from layout import Device, InstallError, say, write
from services import Services
from staging import check_machine, self_test, stage

MARK = ".prunella-device"  # in a prefix that is ours
_OURS = ("releases", "current", "previous", "state", "run", "bin", "incoming", "lock", MARK)
_UP_SECONDS = 180.0  # for a service to load its model


def install(device: Device, source: Path, args: argparse.Namespace) -> None:
    """From an unpacked archive to a release that answers.

    Raises:
        InstallError: at any step; what ran before runs still, or again.
    """
    facts = json.loads((source / "release.json").read_text())
    release = str(facts["id"])
    services = Services(device, args.manager)
    finish_switch(device, services)
    if device.link("current") == release and device.good(release) and not args.again:
        say(f"{release} is installed already")
        services.remember(args.service)
        prove(device, services, release, restart_first=False)
        return
    check_machine(device, facts, args)
    if release not in device.installed():
        stage(device, source, facts, args)
    self_test(device, release, args.self_test_seconds)
    still_wanted(args)
    defaults(device, release)
    services.remember(args.service)
    activate(device, services, release)
    tidy(device, args.keep)


def activate(device: Device, services: Services, release: str) -> None:
    """Switch, restart, ask; good, or back to what was before.

    Raises:
        InstallError: it does not answer as it should; what was before runs again.
    """
    old = device.link("current")
    # From here to the end nobody's leaving stops it: this is short, and ends in one of two good states.
    if old != release:
        device.mark_good(release, False)  # of an earlier time: it is to be proven now
    write(device.state / "switching.json", json.dumps({"from": old, "to": release}))
    device.switch("current", release)
    say(f"switched to {release}")
    try:
        prove(device, services, release, restart_first=True)
    except Exception as error:  # whatever it is: what was before is to run
        back(device, services, old)
        device.mark_good(release, False)
        if old != release:
            device.remove(release)
        (device.state / "switching.json").unlink(missing_ok=True)
        went = f"back to {old}" if old else "and there was nothing before"
        raise InstallError(f"{error}; {went}") from error
    if old is not None and old != release:
        device.switch("previous", old)
    command = device.prefix / "bin" / "prunella"
    command.parent.mkdir(exist_ok=True)
    write(command, f'#!/bin/sh\nexec {shlex.quote(str(device.prefix))}/current/bin/prunella "$@"\n', 0o755)
    (device.state / "switching.json").unlink(missing_ok=True)


def prove(device: Device, services: Services, release: str, *, restart_first: bool) -> None:
    """Restart, and see that every service does its work.

    Raises:
        InstallError: one does not.
    """
    try:
        if restart_first:
            services.restart()
        for name in services.names():
            say(f"probing {name}")
            if name == "serve":
                _probe_server(device, release)
            else:  # nobody speaks to it: that it stays up is what can be seen
                time.sleep(3)
                found = services.state(name)
                if not found.startswith(("running", "active")):
                    raise InstallError(f"{name} does not stay up ({found})")
    except (probe.ProbeError, OSError, ValueError) as error:
        raise InstallError(f"probe: {error}") from error
    device.mark_good(release)
    say(f"{release} is good")


def _probe_server(device: Device, release: str) -> None:
    facts = device.facts(release)
    settings = probe.Address.of(probe.read_environment(device.prefix / "etc" / "serve.env"))
    clip = device.releases / release / facts["self_test"]["clip"]
    timeout = 60 + 20 * float(facts["self_test"]["seconds"])
    probe.check(settings, clip, tuple(facts["self_test"]["texts"]), wait=_UP_SECONDS, timeout=timeout)


def back(device: Device, services: Services, old: str | None) -> None:
    """Run what was before, if there was something."""
    if old is None:
        services.stop()
        device.switch("current", None)
        return
    device.switch("current", old)
    say(f"switched back to {old}")
    try:
        services.restart()
        for name in services.names():
            if name == "serve":
                _probe_server(device, old)
    except (InstallError, probe.ProbeError, OSError, ValueError) as error:
        say(f"{old} does not answer either: {error}")


def finish_switch(device: Device, services: Services) -> None:
    """A switch that the power or a kill cut short: back to what was proven before."""
    path = device.state / "switching.json"
    try:
        cut = json.loads(path.read_text())
    except (OSError, ValueError):
        path.unlink(missing_ok=True)
        return
    old, new = cut.get("from"), cut.get("to")
    say(f"an earlier switch to {new} was cut short")
    if device.link("current") == new and not device.good(str(new)):
        back(device, services, old if old in device.installed() else None)
    elif device.link("current") == new and old in device.installed() and old != new:
        device.switch("previous", old)  # it was proven, and only this was missing
    path.unlink(missing_ok=True)


def rollback(device: Device, services: Services) -> None:
    """Back to the release before.

    Raises:
        InstallError: there is none, or it does not answer.
    """
    finish_switch(device, services)
    previous = device.link("previous")
    if previous is None:
        raise InstallError("there is no release before this one: --list shows those that are there")
    activate(device, services, previous)


def listing(device: Device) -> str:
    """One line a release."""
    current, previous = device.link("current"), device.link("previous")
    lines = []
    for release in device.installed():
        facts = device.facts(release)
        marks = {current: "current", previous: "previous"}.get(release, "")
        proven = "good" if device.good(release) else "not proven"
        lines.append(
            f"{release}  {marks:<8}  {proven:<10}  {facts['bundle']}, {facts['recipe']}, for {facts['target']}"
        )
    return "\n".join(lines) or f"nothing is installed at {device.prefix}"


def uninstall(device: Device, services: Services, *, purge: bool) -> None:
    """Stop the services and remove what was installed; settings stay unless `purge`."""
    if not (device.prefix / MARK).is_file():
        say(f"nothing is installed at {device.prefix}")
        return
    services.stop(forget=True)
    for name in [*_OURS, *(["etc"] if purge else [])]:
        path = device.prefix / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        device.prefix.rmdir()
    kept = (
        ""
        if purge or not device.prefix.exists()
        else f"; its settings stay in {device.prefix}/etc (--purge removes them)"
    )
    say(f"prunella is removed from {device.prefix}{kept}")


def defaults(device: Device, release: str) -> None:
    """Settings of the services where there are none yet."""
    etc = device.prefix / "etc"
    etc.mkdir(exist_ok=True)
    for shipped in sorted((device.releases / release / "etc").glob("*.env")):
        if not (etc / shipped.name).exists():
            write(etc / shipped.name, shipped.read_text(), 0o640)


def tidy(device: Device, keep: int) -> None:
    """Remove all but the current release and as many of the newest good ones."""
    current, previous = device.link("current"), device.link("previous")
    others = [one for one in device.installed() if one != current]
    others.sort(key=lambda one: (one == previous, device.good(one)))  # what is likeliest to be wanted, last
    for release in others[: max(0, len(others) - keep)]:
        device.remove(release)


def still_wanted(args: argparse.Namespace) -> None:
    """Whether whoever asked is still there, where install is attached to them: a broken connection switches nothing.

    Raises:
        InstallError: they went.
    """
    if args.attached and select.select([0], [], [], 0)[0] and not os.read(0, 1):
        raise InstallError("the connection broke before the switch: nothing has changed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="install.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("install", "uninstall", "rollback", "list"))
    parser.add_argument("--prefix", type=Path, required=True)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--no-systemd", action="store_true")
    parser.add_argument("--service", default="serve")
    parser.add_argument("--keep", type=int, default=1)
    parser.add_argument("--self-test-seconds", type=float)
    parser.add_argument("--again", action="store_true", help="also what is installed already")
    parser.add_argument("--purge", action="store_true")
    parser.add_argument("--move", action="store_true", help="the source is not needed afterwards")
    parser.add_argument("--attached", action="store_true", help="switch nothing once stdin is closed")
    return parser


def main(argv: list[str] | None = None) -> int:
    """0: done; 1: it failed, and stderr says why; 2: bad usage."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    args = _parser().parse_args(argv)
    args.service = [] if args.service == "none" else args.service.split(",")
    unknown = [name for name in args.service if name not in ("serve", "listen")]
    if unknown or args.keep < 0:
        sys.stderr.write(
            f"prunella: --service {unknown[0] if unknown else ''}: choose serve, listen, both or none; --keep from 0\n"
        )
        return 2
    device = Device(args.prefix)
    manager = device.state / "manager"
    if args.action == "install":
        ours = "launchd" if sys.platform == "darwin" else "systemd"
        args.manager = "supervisor" if args.no_systemd else ours
    else:
        args.manager = manager.read_text().strip() if manager.is_file() else "supervisor"
    services = Services(device, args.manager)
    try:
        if args.action == "list":
            say(listing(device))
            return 0
        if args.action == "install":
            prepare(device)
        elif not device.prefix.is_dir():
            raise InstallError(f"nothing is installed at {device.prefix}")
        with device.only_one():
            actions: dict[str, Callable[[], None]] = {
                "install": lambda: install(device, args.source, args),
                "rollback": lambda: rollback(device, services),
                "uninstall": lambda: uninstall(device, services, purge=args.purge),
            }
            actions[args.action]()
    except InstallError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"prunella: {error}\n")
        return 1
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"prunella: {error.filename or device.prefix}: {error.strerror or error}\n")
        return 1
    return 0


def prepare(device: Device) -> None:
    """A prefix of ours, or an empty one.

    Raises:
        InstallError: it holds what prunella did not put there.
    """
    device.prefix.mkdir(parents=True, exist_ok=True)
    mark = device.prefix / MARK
    if not mark.exists():
        found = sorted({entry.name for entry in device.prefix.iterdir()} - {"etc", "incoming", "lock"})
        if found:
            raise InstallError(
                f"{device.prefix} holds {found[0]}, which prunella did not put there: choose another --prefix"
            )
        write(mark, "prunella\n")
    for folder in (device.releases, device.state, device.prefix / "bin", device.prefix / "etc"):
        folder.mkdir(exist_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
