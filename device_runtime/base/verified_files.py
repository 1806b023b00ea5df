"""Files against their sha256, hashed beside each other; and the memory of it, so that a start need not hash them again.

What is remembered of a file is its sha256 with its size, times (changed and modified, in ns) and inode, by the folder that it
is in. Whoever writes to a file changes one of these: the time of change cannot be set back without being root. What changes
no file, such as a card that wears out, is found by hashing alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from prunella._version import __version__
from prunella.device_runtime.base.private_cache import read_private, write_private
from prunella.device_runtime.base.readers import sha256

_THREADS = 2
_MOST_BYTES = 1 << 20  # of a record
# A file that was changed so shortly before it was hashed may change again within the same tick of its clock; FAT's has 2 s.
_SETTLED_NS = 3_000_000_000


def first_that_differs(folder: Path, expected: Mapping[str, str], *, remembered: bool) -> str | None:
    """The name of the first file whose sha256 is another than expected; None: all are what they should be.

    Args:
        folder: that they are in.
        expected: lower-case hex sha256 by the file's name in the folder; they exist.
        remembered: a file that was found right before, and has not been touched since, is believed.

    Raises:
        OSError: a file cannot be read.
    """
    now = {name: _state(folder / name) for name in expected}
    wanted = {name: [digest, *now[name]] for name, digest in expected.items()}
    known = _recall(folder) if remembered else {}
    unknown = [name for name in expected if known.get(name) != wanted[name]]
    if not unknown:
        return None
    began = time.time_ns()
    found = _hashed([folder / name for name in unknown])
    for name, digest in zip(unknown, found, strict=True):
        if digest != expected[name]:
            return name
    if remembered:
        settled = [
            name
            for name, (_, modified, changed, _) in now.items()
            if name not in unknown
            or (max(modified, changed) < began - _SETTLED_NS and _state(folder / name) == now[name])
        ]
        if settled:
            _remember(folder, {name: wanted[name] for name in settled})
    return None


def _state(file: Path) -> tuple[int, int, int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _hashed(files: list[Path]) -> list[str]:
    """Their digests in the same order: hashing large blocks lets other threads go on, and one core reads while one hashes."""
    digests: list[str | OSError] = [""] * len(files)
    # The largest first, so that no thread is left alone with it.
    todo = sorted(range(len(files)), key=lambda place: files[place].stat().st_size)

    def work() -> None:
        while True:
            try:
                place = todo.pop()
            except IndexError:
                return
            try:
                digests[place] = sha256(files[place])
            except OSError as error:
                digests[place] = error

    beside = [threading.Thread(target=work) for _ in range(min(_THREADS, len(files)) - 1)]
    for thread in beside:
        thread.start()
    work()
    for thread in beside:
        thread.join()
    found = []
    for digest in digests:
        if isinstance(digest, OSError):
            raise digest
        found.append(digest)
    return found


def _record(folder: Path) -> str:
    return f"{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()}.json"


def _recall(folder: Path) -> dict[str, object]:
    text = read_private(_record(folder), _MOST_BYTES)
    try:
        found = json.loads(text or b"{}")
        files = found.get("files", {}) if found.get("prunella") == __version__ else {}
    except (ValueError, AttributeError, RecursionError):
        return {}
    return files if isinstance(files, dict) else {}


def _remember(folder: Path, files: Mapping[str, object]) -> None:
    body = {"prunella": __version__, "folder": os.path.realpath(folder), "files": files}
    write_private(_record(folder), json.dumps(body).encode("utf-8", "surrogateescape"))
