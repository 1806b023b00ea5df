"""What prunella keeps in its cache of models, what it takes, and clearing it: nothing else that lies there is touched."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from prunella.device_runtime.base.cache import cache_folder
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.weights.wheels import SMOLLM2_135M, WHISPER_TINY_EN

# Converted models; what providers compiled, as target profiles name their folders; what starts remember; the list of fonts.
_CONVERTED = re.compile(rf"({'|'.join(map(re.escape, EMBEDDED))})-[0-9a-f]{{12}}")
_COMPILED = ("coreml", "tensorrt", "start", "matplotlib")
# Out of wheels, of whatever version; a wheel that was laid there by hand is its owner's.
_FETCHED = tuple(source.package for source in (SMOLLM2_135M, WHISPER_TINY_EN))


@dataclass(frozen=True)
class Cached:
    """A folder of the cache, and the bytes in it."""

    path: Path
    bytes: int


def cached() -> tuple[Cached, ...]:
    """What prunella fetched, converted or compiled, by path; links are left out.

    Raises:
        UsageError: no home, and no cache is named.
    """
    folder = cache_folder()
    found = [path for path in _folders(folder) if _CONVERTED.fullmatch(path.name) or path.name in _COMPILED]
    found += [
        path
        for path in _folders(folder / "wheels")
        if path.name.startswith(".download-") or path.name.rpartition("-")[0] in _FETCHED
    ]
    return tuple(Cached(path, _size(path)) for path in sorted(found))


def clear() -> tuple[Cached, ...]:
    """Remove what `cached` lists, and return it. It is fetched or made again when it is needed.

    Raises:
        UsageError: something cannot be removed.
    """
    found = cached()
    for one in found:
        try:
            shutil.rmtree(one.path)
        except OSError as error:
            raise UsageError(f"{one.path} cannot be removed ({error.strerror or error})") from error
    return found


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or path.is_file())
