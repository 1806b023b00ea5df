"""Where what was fetched or compiled is kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from prunella.device_runtime.base.errors import UsageError


def cache_folder() -> Path:
    """Where fetched files live: `$PRUNELLA_CACHE`, else a systemd service's own folder, else `$XDG_CACHE_HOME/prunella`, else
    where this system keeps caches.

    A service's: the first of its `CacheDirectory=`, else `cache` in the first of its `StateDirectory=` (systemd.exec(5)).

    Linux: `~/.cache/prunella`; macOS: `~/Library/Caches/prunella`; Windows: `%LOCALAPPDATA%\\prunella\\Cache`. Where an
    earlier prunella filled `~/.cache/prunella` on one of these, that stays in use.

    Raises:
        UsageError: none is named, and this user has no home, as a service's or a container's may not.
    """
    chosen = os.environ.get("PRUNELLA_CACHE")
    try:
        if chosen:
            return Path(chosen).expanduser()
        if (service := _of_the_service()) is not None:
            return service
        if base := os.environ.get("XDG_CACHE_HOME"):
            return Path(base) / "prunella"
        earlier = Path.home() / ".cache" / "prunella"
    except RuntimeError as error:
        what = f"PRUNELLA_CACHE is {chosen}, and" if chosen else "no HOME is set, and"
        raise UsageError(
            f"{what} there is no such home: set PRUNELLA_CACHE to a folder's whole path"
        ) from error
    if earlier.is_dir():
        return earlier
    from platformdirs import user_cache_path  # asked once: from then on the folder is there, on Linux

    return user_cache_path("prunella", appauthor=False)


def _of_the_service() -> Path | None:
    """What systemd made for this service, which may have no home, or one that it cannot write."""
    if not os.environ.get("INVOCATION_ID"):  # of systemd alone; the other two could be anybody's
        return None
    for name, below in (("CACHE_DIRECTORY", ""), ("STATE_DIRECTORY", "cache")):
        first = os.environ.get(name, "").partition(":")[0]
        if Path(first).is_absolute():
            return Path(first) / below
    return None


def writable_cache(*below: str, mode: int = 0o777) -> Path:
    """A folder in the cache, made where it is missing, the last of them with `mode` less the umask.

    Raises:
        UsageError: no home, or the folder cannot be made or written.
    """
    folder = cache_folder().joinpath(*below)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=mode, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        raise UsageError(
            f"the cache {folder} cannot be written ({error.strerror or error}): set PRUNELLA_CACHE to a folder that can"
        ) from error
    return folder
