"""An archive of `prunella pack` to one device or several, over the system's own ssh and sftp; no agent is there.

    prunella deploy dist/prunella-pi-raspberry-pi-5-....tar.gz pi@kitchen.local pi@hall.local --sudo

Each device is looked at first: architecture, glibc, Python, memory, disk, the processor's features. Then the archive is copied,
going on where an earlier copy broke off, verified, and installed beside what runs there. The shipped clip must give the expected
text in time before the new release becomes current; then the service is restarted and must transcribe, or the old release comes
back. What ran keeps running until then, whatever breaks. stdout has one line a device; the exit code is 1 if one failed.

    prunella deploy --list pi@kitchen.local
    prunella deploy --rollback pi@kitchen.local
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from prunella.deployment.device_fit import look, misfits
from prunella.deployment.release import Release, read_release
from prunella.deployment.ssh import ConnectionLostError, Host, RemoteError, parse_host, require_ssh
from prunella.device_runtime.base.errors import PrunellaError, UsageError
from prunella.device_runtime.base.files import sha256

PREFIX = "/opt/prunella"
_COPIES = 3  # tries of a copy: a broken one goes on, a corrupt one begins anew
_AT_ONCE = 8
# How much of the copy is there. $1: folder, $2: the copy, $3: bytes of the whole; more than that is none of it.
ROOM = r"""
set -eu
mkdir -p "$1"
[ -e "$2" ] || { echo 0; exit 0; }
size=$(($(wc -c <"$2")))
[ "$size" -le "$3" ] || { rm -f "$2"; size=0; }
echo "$size"
"""
# Verify, unpack into a folder of its own, and say where. $1: the copy, $2: its sha256, $3: that folder.
UNPACK = r"""
set -eu
sum=$(if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi)
[ "${sum%% *}" = "$2" ] || { rm -f "$1"; echo "corrupt copy" >&2; exit 9; }
mkdir -p "$3"
tar -xzf "$1" -C "$3" || { rm -rf "$3"; echo "the archive cannot be unpacked: is the disk full?" >&2; exit 1; }
ls "$3"
"""


@dataclass(frozen=True)
class DeployOptions:
    """How devices are installed to.

    Attributes:
        prefix: folder there.
        systemd: or the supervisor script.
        service: "serve", "listen", both with a comma, or "none".
        keep: releases that stay beside the current one.
        trust: public key that each device is to ask signatures of, if it trusts none yet.
        seconds: for the self-test; None: what the archive says.
    """

    prefix: str = PREFIX
    systemd: bool = True
    service: str = "serve"
    keep: int = 1
    trust: Path | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one device.

    Attributes:
        host: as it was named.
        ok: whether the release runs there.
        release: that was to run.
        before: that ran.
        seconds: that it took.
        detail: why not, or what the self-test said.
    """

    host: str
    ok: bool
    release: str
    before: str
    seconds: float
    detail: str


def deploy(archive: Path, host: Host, options: DeployOptions, tell: Callable[[str], None]) -> Outcome:
    """Install an archive on one device. Nothing is raised that the device is to blame for: the outcome says it.

    Args:
        archive: of `pack`.
        host: the device.
        options: how.
        tell: called with each line that tells how far it is.
    """
    release = read_release(archive)
    begun = time.monotonic()
    before, detail, ok = "", "", False
    try:
        with host.connected() as one:
            device = look(one, options.prefix, release.python)
            before = device.current
            wrong = misfits(
                release,
                device,
                archive_mb=archive.stat().st_size // 10**6,
                systemd=options.systemd and release.os == "Linux" and options.service != "none",
                prefix=options.prefix,
            )
            if wrong:
                raise RemoteError("; ".join(wrong))
            said: list[str] = []

            def told(line: str) -> None:
                said.append(line)
                tell(line)

            _install(archive, one, options, told)
            detail = next(
                (line for line in reversed(said) if line.startswith("self-test: ")), said[-1] if said else ""
            )
            ok = True
    except (RemoteError, ConnectionLostError) as error:
        detail = str(error)
    return Outcome(host.name, ok, release.id, before, round(time.monotonic() - begun, 1), detail)


def deploy_all(
    archive: Path, hosts: Sequence[Host], options: DeployOptions, tell: Callable[[str], None]
) -> tuple[Outcome, ...]:
    """`deploy` to several devices at once, in their order."""
    lock = threading.Lock()

    def one(host: Host) -> Outcome:
        def told(line: str) -> None:
            with lock:
                tell(f"{host.name}: {line}")

        return deploy(archive, host, options, told)

    with ThreadPoolExecutor(min(_AT_ONCE, len(hosts))) as pool:
        return tuple(pool.map(one, hosts))


def manage(host: Host, prefix: str, action: str, tell: Callable[[str], None]) -> None:
    """`--list` or `--rollback` of what is installed there.

    Raises:
        RemoteError, ConnectionLostError: nothing is, or it failed.
    """
    command = ["sh", f"{prefix}/current/install.sh", f"--{action}", "--prefix", prefix]
    host.attached(command, tell, root=True)


def _install(archive: Path, host: Host, options: DeployOptions, tell: Callable[[str], None]) -> None:
    digest = sha256(archive)
    # Where root is asked for by sudo, sftp is not root: it copies into the user's home.
    folder = f"{options.prefix}/incoming" if not host.sudo else ".prunella-incoming"
    part = f"{folder}/{digest[:32]}.part"
    place = f"{folder}/{digest[:12]}.{secrets.token_hex(4)}"
    top = ""
    for attempt in range(_COPIES):
        there = int(host.run(ROOM, folder, part, str(archive.stat().st_size)))
        tell(
            f"copying {archive.stat().st_size / 1e6:.0f} MB"
            + (f", {there / 1e6:.0f} of them are there" if there else "")
        )
        try:
            host.copy(archive, part, there)
            top = host.run(UNPACK, part, digest, place, timeout=900).strip()
            break
        except ConnectionLostError:
            if attempt + 1 == _COPIES:
                raise
            time.sleep(1 + attempt)
        except RemoteError as error:
            if str(error) != "corrupt copy":
                raise
            if attempt + 1 == _COPIES:
                raise RemoteError(
                    f"what arrives is not what was sent, {_COPIES} times: look at its disk and memory"
                ) from error
            tell("the copy is corrupt: copying it again")
    command = ["sh", f"{place}/{top}/install.sh", "--prefix", options.prefix, "--move", "--attached"]
    command += ["--service", options.service, "--keep", str(options.keep)]
    command += [] if options.systemd else ["--no-systemd"]
    if options.seconds is not None:
        command += ["--self-test-seconds", str(options.seconds)]
    if options.trust is not None:
        host.run('cat >"$1" <<END\n' + options.trust.read_text().strip() + "\nEND\n", f"{place}/trusted.pub")
        command += ["--trust", f"{place}/trusted.pub"]
    try:
        host.attached(command, tell, root=True)
    except RemoteError:
        host.run('rm -rf "$1"', place, root=True)
        raise
    # Of other runs too, which were cut short: what is installed needs none of it.
    try:
        host.run('cd "$1" && find . -mindepth 1 -maxdepth 1 -exec rm -rf {} +', folder, root=True)
    except (RemoteError, ConnectionLostError) as error:
        tell(f"{folder} could not be emptied there ({error})")


def table(outcomes: Sequence[Outcome]) -> str:
    """One line a device."""
    width = max(len(one.host) for one in outcomes)
    rows = []
    for one in outcomes:
        state = "installed" if one.ok else "FAILED"
        was = f"{one.before or 'nothing'} → {one.release}" if one.ok else f"{one.before or 'nothing'} stays"
        rows.append(f"{one.host:<{width}}  {state:<9}  {was}  {one.seconds:6.1f} s  {one.detail}")
    return "\n".join(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella deploy`."""
    parser.add_argument(
        "words",
        metavar="ARCHIVE HOST",
        nargs="+",
        help="an archive, then user@host or user@host:PORT, one or several; only hosts with --list and --rollback",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="the releases that are there")
    what.add_argument("--rollback", action="store_true", help="back to the release before")
    parser.add_argument(
        "--prefix", default=PREFIX, metavar="DIR", help="folder on the device (default: %(default)s)"
    )
    parser.add_argument(
        "--no-systemd", action="store_true", help="a supervisor script in place of systemd units"
    )
    parser.add_argument(
        "--service",
        default="serve",
        metavar="NAMES",
        help="what to run: serve, listen, both with a comma, or none (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        type=int,
        default=1,
        metavar="N",
        help="releases that stay beside the current one (default: %(default)s)",
    )
    parser.add_argument("--sudo", action="store_true", help="become root there by `sudo -n`")
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="PUB",
        help="public key whose signatures the device asks for from now on, unless it trusts one already",
    )
    parser.add_argument(
        "--latency",
        type=float,
        metavar="S",
        help="seconds for the self-test (default: what the archive says)",
    )
    parser.add_argument(
        "-F", "--ssh-config", type=Path, metavar="FILE", help="for ssh and sftp, in place of yours"
    )
    parser.add_argument(
        "--ssh-option", action="append", default=[], metavar="NAME=VALUE", help="as `ssh -o` (repeatable)"
    )
    parser.add_argument("--json", action="store_true", help="the outcomes as JSON lines")


def run(args: argparse.Namespace) -> int:
    """`prunella deploy`."""
    require_ssh()
    managing = "list" if args.list else "rollback" if args.rollback else ""
    names = args.words if managing else args.words[1:]
    if not names:
        raise UsageError(f"only {args.words[0]} is named: name the devices behind the archive, as user@host")
    if args.keep < 0 or not args.prefix.startswith("/"):
        raise UsageError("--keep is a number from 0, and --prefix a whole path")
    hosts = [
        parse_host(name, options=args.ssh_option, config=args.ssh_config, sudo=args.sudo) for name in names
    ]
    if managing:
        return _manage_all(hosts, args.prefix, managing)
    if args.trust is not None and not args.trust.is_file():
        raise UsageError(f"the public key {args.trust} is not there")
    archive = Path(args.words[0])
    read_release(archive)
    options = DeployOptions(
        prefix=args.prefix.rstrip("/") or "/",
        systemd=not args.no_systemd,
        service=args.service,
        keep=args.keep,
        trust=args.trust,
        seconds=args.latency,
    )
    outcomes = deploy_all(archive, hosts, options, _tell)
    if args.json:
        sys.stdout.write("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in outcomes))
    else:
        sys.stdout.write(f"{table(outcomes)}\n")
    return int(not all(one.ok for one in outcomes))


def _manage_all(hosts: Sequence[Host], prefix: str, action: str) -> int:
    failed = False
    for host in hosts:
        if len(hosts) > 1:
            sys.stdout.write(f"{host.name}\n")
        try:
            manage(host, prefix, action, lambda line: print(line))  # noqa: T201
        except PrunellaError as error:
            failed = True
            _tell(f"prunella: {host.name}: {error}")
    return int(failed)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


__all__ = ["DeployOptions", "Outcome", "Release", "deploy", "deploy_all", "manage", "table"]
