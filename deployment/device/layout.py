"""What lies below a prefix on a device, and how it changes: whole, or not at all. Of the standard library alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LOCK_SECONDS = 900.0


class InstallError(Exception):
    """The installation failed; what ran before still runs. The message says why, and what to do."""


def say(line: str) -> None:
    """To whoever still listens: a connection that broke ends nothing."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


class Device:
    """What is installed below a prefix."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.releases = prefix / "releases"
        self.state = prefix / "state"

    def link(self, name: str) -> str | None:
        """The release that `current` or `previous` names, if it is there."""
        try:
            release = (self.prefix / name).readlink().name
        except OSError:
            return None
        return release if (self.releases / release / "release.json").is_file() else None

    def switch(self, name: str, release: str | None) -> None:
        """Point a link at a release, in one step; None removes it."""
        path = self.prefix / name
        if release is None:
            path.unlink(missing_ok=True)
            return
        fresh = path.with_name(f".{name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("releases") / release)
        fresh.replace(path)
        sync_folder(self.prefix)

    def good(self, release: str) -> bool:
        """Whether a release has run and answered here."""
        return (self.state / f"good-{release}").exists()

    def mark_good(self, release: str, good: bool = True) -> None:
        mark = self.state / f"good-{release}"
        if good:
            write(mark, time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))
        else:
            mark.unlink(missing_ok=True)

    def facts(self, release: str) -> dict[str, Any]:
        """`release.json` of an installed release."""
        facts: dict[str, Any] = json.loads((self.releases / release / "release.json").read_text())
        return facts

    def installed(self) -> list[str]:
        """Releases that are whole, oldest first."""
        if not self.releases.is_dir():
            return []
        found = [
            one for one in self.releases.iterdir() if (one / "release.json").is_file() and one.name[0] != "."
        ]
        return [one.name for one in sorted(found, key=lambda one: (one / "release.json").stat().st_mtime)]

    def remove(self, release: str) -> None:
        """A release that is not current, whole: first its name, then its files."""
        if self.link("current") == release:
            return
        if self.link("previous") == release:
            self.switch("previous", None)
        folder = self.releases / release
        if folder.is_dir():
            doomed = self.releases / f".partial-{release}"
            shutil.rmtree(doomed, ignore_errors=True)
            folder.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        for mark in (f"good-{release}", f"self-test-{release}"):
            (self.state / mark).unlink(missing_ok=True)

    @contextlib.contextmanager
    def only_one(self) -> Iterator[None]:
        """One installation at a time; a killed one holds nothing.

        Raises:
            InstallError: another one goes on and on.
        """
        handle = os.open(self.prefix / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            until, told = time.monotonic() + _LOCK_SECONDS, False
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > until:
                        raise InstallError(
                            "another installation has not ended: look for it, and try again"
                        ) from None
                    if not told:
                        say("waiting for another installation to end")
                        told = True
                    time.sleep(0.2)
            yield
        finally:
            os.close(handle)


def take(source: Path, target: Path, *, move: bool) -> None:
    """Copy, or move where the archive is not needed any more and lies on the same disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if move:
        with contextlib.suppress(OSError):
            source.rename(target)
            return
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.chmod(mode)
    fresh.replace(path)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
