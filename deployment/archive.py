"""One .tar.gz with the same bytes for the same files, a list of their sha256, and its signature."""

from __future__ import annotations

import gzip
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from prunella.device_runtime.base.errors import ExportError, UsageError
from prunella.device_runtime.base.files import sha256, whole_file

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
NAMESPACE = "prunella"  # of signatures: one for another purpose is none for this
_FIRST = (SUMS, SIGNATURE, "release.json", "install.sh")  # read without unpacking the rest
_TIME = 315_532_800  # 1980-01-01, which zips and tars can both say


def write_sums(folder: Path) -> None:
    """`SHA256SUMS` of all files of a folder, as sha256sum reads it."""
    lines = [
        f"{sha256(folder / name)}  ./{name}\n" for name in _names(folder) if name not in (SUMS, SIGNATURE)
    ]
    (folder / SUMS).write_text("".join(lines))


def check_key(key: Path) -> None:
    """Before the work: a private key and the tool that signs with it.

    Raises:
        UsageError: no such file, or no ssh-keygen.
    """
    if not key.is_file():
        raise UsageError(f"the key {key} is not there: ssh-keygen -t ed25519 -f {key} makes one")
    if shutil.which("ssh-keygen") is None:
        raise UsageError("ssh-keygen, which signs, is not here: install OpenSSH's client")


def sign(folder: Path, key: Path) -> None:
    """Sign `SHA256SUMS` with an SSH key. An ed25519 key gives the same signature each time.

    Raises:
        ExportError: ssh-keygen refuses, for example because the key's passphrase cannot be asked.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(folder / SUMS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ExportError(
            f"ssh-keygen does not sign with {key} ({' '.join(done.stderr.split())}): give another --key"
        )


def write_archive(folder: Path, path: Path) -> None:
    """Pack `folder`, as the one folder in it, into `path`, whole or not at all."""
    names = _names(folder)
    ordered = [*(name for name in _FIRST if name in names), *(name for name in names if name not in _FIRST)]
    with (
        whole_file(path) as partial,
        partial.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name in ordered:
            file = folder / name
            entry = tarfile.TarInfo(f"{folder.name}/{name}")
            entry.size, entry.mtime = file.stat().st_size, _TIME
            entry.mode = 0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644
            with file.open("rb") as data:
                archive.addfile(entry, data)


def read_first(path: Path, *names: str) -> dict[str, bytes]:
    """Files that stand at the head of an archive; those that it lacks are left out.

    Raises:
        UsageError: it is none of ours.
    """
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for entry in archive:
                name = entry.name.partition("/")[2]
                if name not in _FIRST:
                    break
                data = archive.extractfile(entry)
                if name in names and data is not None:
                    found[name] = data.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UsageError(f"{path} is no archive of `prunella pack` ({error})") from error
    if not found:
        raise UsageError(
            f"{path} is no archive of `prunella pack`: it does not begin with {' or '.join(names)}"
        )
    return found


def _names(folder: Path) -> list[str]:
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()
