"""What an archive says of itself: `release.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from prunella.deployment.archive import SUMS, read_first
from prunella.device_runtime.base.errors import UsageError


@dataclass(frozen=True)
class SelfTest:
    """What the device must hear before a release becomes current.

    Attributes:
        clip: path in the archive.
        texts: one of them.
        seconds: that it may take.
    """

    clip: str
    texts: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Release:
    """An archive, and where it can be installed.

    Attributes:
        id: of its content.
        bundle: name of the bundle in it.
        target: the profile that it was packed for.
        recipe: of the bundle.
        engines: of the bundle that the target can use.
        version: of prunella.
        os: as `uname -s`.
        arch: as `uname -m`.
        python: "3.11".
        glibc: the newest that a wheel in it needs, "2.28"; "" on macOS.
        flags: features of the processor, as /proc/cpuinfo names them.
        memory_mb: that it is estimated to take.
        installed_bytes: on the device's disk.
        self_test: what must be heard there.
        kept: what of the archive becomes part of the release.
    """

    id: str
    bundle: str
    target: str
    recipe: str
    engines: tuple[str, ...]
    version: str
    os: str
    arch: str
    python: str
    glibc: str
    flags: tuple[str, ...]
    memory_mb: int
    installed_bytes: int
    self_test: SelfTest
    kept: tuple[str, ...] = field(default_factory=tuple)

    def dumps(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def read_release(path: Path) -> Release:
    """Of a packed archive.

    Raises:
        UsageError: it is none of `prunella pack`'s.
    """
    if not path.is_file():
        raise UsageError(
            f"{path} is not there: `prunella pack BUNDLE --target T -o {path.parent}` makes archives"
        )
    data = read_first(path, "release.json", SUMS)
    try:
        return msgspec.json.decode(data["release.json"], type=Release)
    except (KeyError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"{path} is no archive of this prunella's `pack` ({error}): pack it again"
        ) from error
