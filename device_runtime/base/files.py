"""Files appear whole or not at all: write to a temporary name in the same folder, then rename."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunella.device_runtime.base.errors import OutputError, UsageError
from prunella.device_runtime.base.exchange import exchange
from prunella.device_runtime.base.outputs import check_output, contents, output_path

# Writers read too: others find it here.
from prunella.device_runtime.base.readers import ARRIVING, COMPLETE, HIDDEN
from prunella.device_runtime.base.readers import bring_back as bring_back
from prunella.device_runtime.base.readers import sha256 as sha256

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

_REPLACED = f"{HIDDEN}replaced"
_ABANDONED_SECONDS = 24 * 3_600
_TRIES = 100
_LONGEST = 200  # bytes of a name; the most that file systems take is 255
_writing: set[Path] = set()  # temporary folders of this process


@contextlib.contextmanager
def whole_file(path: str | Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes `path` (fsynced), on any error it is removed.

    Args:
        path: a link is followed.
        mode: permissions from the first byte on, less the umask: 0o600 for a secret.
    """
    path = output_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}{_short(path.suffix)}")
    # The system applies the umask: to read it would be to change it, under the feet of other threads.
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory; on success it becomes `path`, on any error it is removed.

    A kill at any moment leaves the old folder or the new one, never one that looks complete and is not. Where the
    system cannot swap two folders the old one may be hidden for a moment: `bring_back` brings it back. Of two writers
    the one that ends last wins, whole.

    Args:
        path: a link is followed; into an empty folder that cannot be replaced (a mount point) the files are moved.

    Raises:
        UsageError: what is there was not made by prunella.
        OutputError: what is there cannot be replaced, for example because a program holds it open on Windows.
    """
    if Path(path) in _writing:  # inside a folder that this process is writing: its writer sees to all this
        yield Path(path)
        return
    path = check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    bring_back(path)
    inside = can_only_be_filled(path)
    with scratch_directory(path, "partial") as partial:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        check_output(path)
        try:
            if inside or not _take_place(partial, path):
                _move_in(partial, path)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be replaced ({error.strerror or error}): close what holds it open and run it again"
            ) from error


@contextlib.contextmanager
def scratch_directory(path: str | Path, kind: str) -> Iterator[Path]:
    """A folder `beside` an output, gone afterwards. Those that a dead process left are removed, others not."""
    stem = beside(path, kind)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for stale in stem.parent.glob(f"{glob.escape(stem.name)}*"):
        remove_abandoned(stale)
    while True:
        folder = stem.with_name(f"{stem.name}{secrets.token_hex(4)}")
        folder.mkdir()
        with hold(folder) as held:
            if not held:  # another process took it for abandoned in between
                continue
            _writing.add(folder)
            try:
                yield folder
            finally:
                _writing.discard(folder)
                shutil.rmtree(folder, ignore_errors=True)
            return


def beside(path: str | Path, kind: str) -> Path:
    """How the names of an output's unfinished companions begin: `.NAME.KIND-`, or inside it where it can only be filled."""
    path = output_path(path)
    if can_only_be_filled(path):
        return path / f"{HIDDEN}{kind}-"
    return path.with_name(f".{_short(path.name)}.{kind}-")


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Mark a folder as in use until the block or the process ends. Yields False where another process has it."""
    try:
        handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    except FileNotFoundError:
        yield False
        return
    if handle is None or fcntl is None:
        yield True
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())
        except OSError as error:  # a file system without locks holds for everyone
            held = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        yield held
    finally:
        os.close(handle)


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """For a folder that is added to: one process at a time, until the block or the process ends, not its children.

    Raises:
        UsageError: another process writes there.
    """
    if fcntl is None:
        yield
        return
    lock = folder / f"{HIDDEN}writer"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(
                handle, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # `flock` would go on in forked workers that outlive us
            alone = os.path.samestat(os.fstat(handle), lock.stat())
        except OSError as error:  # a file system without locks: everyone is alone
            alone = error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOENT)
        if not alone:
            raise UsageError(
                f"another process is writing to {folder}: wait for it, or choose another folder with -o"
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def remove_abandoned(folder: Path) -> bool:
    """Remove a temporary folder whose process is dead; without locks, one that nobody has touched for a day."""
    if fcntl is None or not _has_locks(folder):
        with contextlib.suppress(OSError):
            newest = max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    with hold(folder) as held:
        if held:
            shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def finish_replacing(path: Path) -> None:
    """What `bring_back` does of a real path that is missing or half filled."""
    with contextlib.suppress(OSError):  # read-only media: nothing was half done there by us
        if not path.exists():
            hidden = path.parent.glob(f"{glob.escape(f'.{_short(path.name)}.replaced-')}*")
            for old in sorted(hidden, key=lambda folder: folder.stat().st_mtime, reverse=True)[:1]:
                old.rename(path)
        else:
            with hold(path) as held:
                if held:
                    _finish_moving(path)


def _take_place(partial: Path, path: Path) -> bool:
    """Rename `partial` to `path`. False where `path` can only be filled, not replaced."""
    for _ in range(_TRIES):
        try:
            if not path.exists():
                partial.rename(path)
            elif not any(path.iterdir()):
                if os.name == "nt":
                    path.rmdir()
                partial.rename(path)  # elsewhere that replaces an empty folder in one step
            elif not exchange(partial, path):
                _displace(partial, path)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EXDEV):
                return False
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not partial.exists():
                raise
        else:
            for old in path.parent.glob(f"{glob.escape(f'.{_short(path.name)}.replaced-')}*"):
                shutil.rmtree(old, ignore_errors=True)
            _sync_folder(path.parent)
            return True
    raise OutputError(f"{path} is being written by others all the time: run it again, to another folder")


def _displace(partial: Path, path: Path) -> None:
    old = path.with_name(f".{_short(path.name)}.replaced-{secrets.token_hex(4)}")
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if not path.exists():
            old.rename(path)
        raise


def _move_in(partial: Path, path: Path) -> None:
    """Fill a folder that cannot be renamed. Its files change one by one, so a reader or writer finishes for a killed one."""
    if partial.parent != path:
        inner = path / f"{HIDDEN}partial-{secrets.token_hex(4)}"
        shutil.copytree(partial, inner)
    else:
        inner = partial
    with hold(path) as held:
        if not held:
            raise OutputError(f"{path} is being written by another process: run it again")
        _finish_moving(path)
        inner.rename(path / COMPLETE)  # from here on it is the new one that will be there
        _finish_moving(path)


def _finish_moving(path: Path) -> None:
    if (path / COMPLETE).is_dir():
        (path / _REPLACED).mkdir(exist_ok=True)
        for entry in contents(path):
            entry.rename(path / _REPLACED / entry.name)
        (path / COMPLETE).rename(path / ARRIVING)
    if (path / ARRIVING).is_dir():
        for entry in sorted((path / ARRIVING).iterdir()):
            entry.rename(path / entry.name)
        (path / ARRIVING).rmdir()
    shutil.rmtree(path / _REPLACED, ignore_errors=True)


def can_only_be_filled(path: Path) -> bool:
    """Whether an output is there that cannot be replaced by a rename: a mount point, or in a folder that is read-only."""
    # The folder that one stands in could be renamed, but a shell would go on in the one that is gone.
    try:
        return path.is_dir() and (
            path.is_mount() or path.samefile(Path.cwd()) or not os.access(path.parent, os.W_OK)
        )
    except FileNotFoundError:  # another writer is replacing it at this moment
        return False


def _short(name: str) -> str:
    """A name, or where something put around it would make it too long for a file system, a part of it and a digest."""
    if len(os.fsencode(name)) <= _LONGEST:
        return name
    return f"{name[:50]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def _has_locks(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(handle)
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _sync(path: Path) -> None:
    try:
        with path.open("r+b") as file:  # Windows flushes only what it may write
            os.fsync(file.fileno())
    except PermissionError:  # copied from a read-only file: the system writes it in its own time
        return


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
