"""The wheels that a device installs: resolved and downloaded here for its platform and Python, complete, by hash."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from prunella.deployment.device_platform import DevicePlatform
from prunella.deployment.own_wheel import write_own_wheel
from prunella.device_runtime.base.errors import ExportError
from prunella.device_runtime.base.files import sha256
from prunella.device_runtime.base.install_lines import PACKAGE_FOLDER

# What a package asks for and the runtime never imports: tokenizers is opened from a file, never from the Hub.
UNUSED = {("tokenizers", "huggingface-hub")}
_ROUNDS = 5


@dataclass(frozen=True)
class Wheel:
    """One wheel of the wheelhouse.

    Attributes:
        path: of the file.
        name: of the distribution, normalized.
        version: its version.
        license: as its metadata say, or "".
        installed_bytes: of its files, unpacked.
        sha256: of the file.
        requires: its requirements, as its metadata write them.
    """

    path: Path
    name: str
    version: str
    license: str
    installed_bytes: int
    sha256: str
    requires: tuple[str, ...] = ()


def collect_wheels(
    folder: Path,
    extras: Sequence[str],
    platform: DevicePlatform,
    *,
    constraints: Path | None = None,
    wheels: Path | None = None,
    indexes: Sequence[str] = (),
) -> tuple[Wheel, ...]:
    """Fill `folder` with prunella's own wheel, what its extras need there, and pip to install it.

    Args:
        folder: empty.
        extras: of prunella.
        platform: where it is installed.
        constraints: versions, as pip reads them; by default those of the checkout, if this is one.
        wheels: a folder of wheels that are taken first; without `indexes` and where it has everything, no index is asked.
        indexes: further package indexes.

    Returns:
        The wheels to install, by name; pip is in the folder, not among them.

    Raises:
        ExportError: there is no wheel for this platform, or the index cannot be reached.
    """
    from packaging.requirements import Requirement  # the extra `deploy`

    own = write_own_wheel(folder)
    default = PACKAGE_FOLDER / "constraints.txt"
    pinned = constraints or (default if default.is_file() else None)
    wanted = [
        str(one.name) + str(one.specifier)
        for one in _asked(read_wheel(own), tuple(extras), platform, Requirement)
    ]
    for _ in range(_ROUNDS):
        _download(folder, [*wanted, "pip"], platform, pinned, wheels, indexes)
        have = {wheel.name: wheel for wheel in map(read_wheel, sorted(folder.glob("*.whl")))}
        needed, missing = _closure(have, ("prunella", tuple(extras)), platform, Requirement)
        if not missing:
            break
        wanted += missing  # a marker that holds there and not here
    else:
        raise ExportError(f"no wheel of {', '.join(missing)} came: name a folder that has it with --wheels")
    for name, wheel in have.items():
        if name not in needed and name != "pip":
            wheel.path.unlink()
    chosen = tuple(have[name] for name in sorted(needed))
    lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in chosen]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")
    return chosen


def read_wheel(path: Path) -> Wheel:
    """What a wheel says of itself.

    Raises:
        ExportError: it is no wheel.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(
                name
                for name in archive.namelist()
                if name.endswith(".dist-info/METADATA") and name.count("/") == 1
            )
            fields = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
            size = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, StopIteration, UnicodeDecodeError) as error:
        raise ExportError(f"{path.name} is not a wheel ({error!r}): download it again") from error
    named = fields["License-Expression"] or fields["License"] or ""
    classified = [
        line.rpartition("::")[2].strip()
        for line in fields.get_all("Classifier", [])
        if line.startswith("License ::")
    ]
    return Wheel(
        path,
        normalized(fields["Name"]),
        fields["Version"],
        named.strip() if 0 < len(named.strip()) < 80 and "\n" not in named else ", ".join(classified),
        size,
        sha256(path),
        tuple(fields.get_all("Requires-Dist", [])),
    )


def normalized(name: str) -> str:
    """A distribution's name as indexes spell it."""
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def _asked(wheel: Wheel, extras: tuple[str, ...], platform: DevicePlatform, requirement: Any) -> list[Any]:
    """Requirements of a wheel that hold on the platform, with these of its extras."""
    found = []
    for text in wheel.requires:
        one = requirement(text)
        ways = [{**platform.markers, "extra": extra} for extra in (*extras, "")]
        if one.marker is None or any(one.marker.evaluate(way) for way in ways):
            found.append(one)
    return found


def _closure(
    have: dict[str, Wheel], root: tuple[str, tuple[str, ...]], platform: DevicePlatform, requirement: Any
) -> tuple[set[str], list[str]]:
    """Names that are needed, and requirements that nothing here meets."""
    needed: set[str] = set()
    seen: set[tuple[str, tuple[str, ...]]] = set()
    missing: list[str] = []
    waiting = [root]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        needed.add(name)
        for one in _asked(have[name], extras, platform, requirement):
            other = normalized(one.name)
            if (name, other) in UNUSED:
                continue
            if other not in have or not one.specifier.contains(have[other].version, prereleases=True):
                missing.append(f"{one.name}{one.specifier}")
            else:
                waiting.append((other, tuple(sorted(one.extras))))
    return needed, missing


def _download(
    folder: Path,
    wanted: Iterable[str],
    platform: DevicePlatform,
    constraints: Path | None,
    wheels: Path | None,
    indexes: Sequence[str],
) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--only-binary=:all:",
        "--no-input",
        "-d",
        str(folder),
    ]
    command += ["--disable-pip-version-check", "--implementation", "cp", "--python-version", platform.python]
    for tag in platform.tags:
        command += ["--platform", tag]
    if constraints is not None:
        command += ["-c", str(constraints)]
    if wheels is not None:
        command += ["--find-links", str(wheels)]
        if not indexes and os.environ.get("PIP_NO_INDEX"):
            command += ["--no-index"]
    for index in indexes:
        command += ["--extra-index-url", index]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, timeout=3_600)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (errors or done.stderr.splitlines() or ["pip says nothing"])[-1].removeprefix("ERROR: ")
        raise ExportError(
            f"no wheels for {platform.os} {platform.arch}, Python {platform.python}, glibc up to 2.{platform.glibc} ({why}): "
            "name another --python, a folder that has the missing one with --wheels, or connect to a package index"
        )
