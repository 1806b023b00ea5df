"""Whether a device can run an archive, told before anything is copied there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prunella.deployment.release import Release
from prunella.deployment.ssh import Host, lines

# Prints what a device is as name=value lines. $1: prefix, $2: the Python that is needed.
LOOK = r"""
echo "os=$(uname -s)"
echo "arch=$(uname -m)"
echo "glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2)"
for python in "python$2" python3 /usr/local/bin/python3 /opt/homebrew/bin/python3; do
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    [ "$found" = "$2" ] && { echo "python=$found"; break; }
done
echo "python3=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
echo "memory_kb=$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null)"
folder=$1
while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
echo "disk_kb=$(df -Pk "$folder" | awk 'NR == 2 {print $4}')"
[ -w "$folder" ] && echo "writable=1"
echo "flags=$(grep -m1 -iE '^(flags|features)' /proc/cpuinfo 2>/dev/null | cut -d: -f2)"
[ -d /run/systemd/system ] && echo "systemd=1"
echo "user=$(id -u)"
echo "board=$(tr -d '\0' </proc/device-tree/model 2>/dev/null)"
command -v ssh-keygen >/dev/null && echo "ssh_keygen=1"
echo "current=$(readlink "$1/current" 2>/dev/null | sed 's,.*/,,')"
exit 0
"""


@dataclass(frozen=True)
class Device:
    """What a device says of itself; what it does not say is empty or 0."""

    os: str = ""
    arch: str = ""
    glibc: str = ""
    python: str = ""  # the one that is needed, if it is there
    python3: str = ""  # its default
    memory_mb: int = 0
    disk_mb: int = 0
    writable: bool = False
    flags: tuple[str, ...] = field(default_factory=tuple)
    systemd: bool = False
    root: bool = False
    board: str = ""
    ssh_keygen: bool = False
    current: str = ""


def look(host: Host, prefix: str, python: str) -> Device:
    """Ask a device.

    Raises:
        RemoteError, ConnectionLostError: it does not answer.
    """
    return read_device(dict(lines(host.run(LOOK, prefix, python, root=True))))


def read_device(said: Mapping[str, str]) -> Device:
    """From the lines that `LOOK` prints."""

    def number(name: str) -> int:
        text = said.get(name, "").strip()
        return int(text) if text.isdigit() else 0

    return Device(
        os=said.get("os", ""),
        arch=said.get("arch", ""),
        glibc=said.get("glibc", "").strip(),
        python=said.get("python", ""),
        python3=said.get("python3", ""),
        memory_mb=number("memory_kb") * 1024 // 10**6,
        disk_mb=number("disk_kb") * 1024 // 10**6,
        writable=said.get("writable") == "1",
        flags=tuple(said.get("flags", "").split()),
        systemd=said.get("systemd") == "1",
        root=said.get("user") == "0",
        board=said.get("board", ""),
        ssh_keygen=said.get("ssh_keygen") == "1",
        current=said.get("current", ""),
    )


def misfits(release: Release, device: Device, *, archive_mb: int, systemd: bool, prefix: str) -> list[str]:
    """Why a release cannot run on a device, each with its remedy; none: it can."""
    again = "pack for the target that this device is"
    if (device.os, device.arch) != (release.os, release.arch):
        # Nothing else is worth saying.
        return [
            f"it is {device.os} {device.arch}, and the archive is for {release.os} {release.arch}: {again}"
        ]
    found = []
    if release.glibc and device.glibc and _version(device.glibc) < _version(release.glibc):
        found.append(f"its glibc is {device.glibc}, and the archive needs {release.glibc}: update its system")
    if release.os == "Linux" and not device.glibc:
        found.append(
            "it has no glibc (musl?): wheels for it are not packed; use a Debian-like system or a container"
        )
    if not device.python:
        has = f"Python {device.python3}" if device.python3 else "no Python 3"
        found.append(
            f"it has {has}, and the archive needs {release.python}: install that, or `pack --python {device.python3 or '3.N'}`"
        )
    lacking = [flag for flag in release.flags if device.flags and flag not in device.flags]
    if lacking:
        found.append(
            f"its processor lacks {', '.join(lacking)}: the runtime would die of an illegal instruction; take another device"
        )
    if device.memory_mb and device.memory_mb < release.memory_mb:
        found.append(
            f"it has {device.memory_mb} MB of memory, and the model takes about {release.memory_mb}: prune or quantize further"
        )
    needed = release.installed_bytes // 10**6 + 2 * archive_mb
    if device.disk_mb < needed:
        found.append(
            f"{device.disk_mb} MB are free at {prefix}, and {needed} MB are needed on the way: free some space"
        )
    if not device.writable:
        found.append(f"{prefix} cannot be written: give --sudo, or a --prefix of the user's")
    if systemd and not device.systemd:
        found.append("systemd does not run there: give --no-systemd")
    if systemd and not device.root:
        found.append("systemd units need root: give --sudo, or --no-systemd")
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
