"""The bundle that is installed as a distribution of its own, `prunella-bundle`: it is used where a command names none."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from prunella._version import __version__
from prunella.device_runtime.base.errors import BundleError, UsageError
from prunella.device_runtime.base.suggestions import nearest_paths

PACKAGE = "prunella_bundle"
FOLDER = "reference-pruned-int4"
_MANIFEST = "bundle.json"
_SUFFIX = re.compile(r"\.(?=\w*[a-z])\w{2,4}$", re.IGNORECASE)  # as audio files have, and versions have not


def find_ready_bundle() -> Path | None:
    """Folder of the installed bundle, or None where none is installed. On a device it is the release's: `PRUNELLA_BUNDLE`."""
    named = os.environ.get("PRUNELLA_BUNDLE")
    if named and (Path(named) / _MANIFEST).is_file():
        return Path(named)
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except ValueError:  # put into sys.modules by hand
        return None
    places = (Path(place) / FOLDER for place in (spec and spec.submodule_search_locations) or ())
    return next((place for place in places if (place / _MANIFEST).is_file()), None)


def ready_bundle() -> Path:
    """`find_ready_bundle`, where it is needed.

    Raises:
        BundleError: none is installed; how to get one is said.
    """
    found = find_ready_bundle()
    if found is None:
        wheel = f"{PACKAGE}-{__version__}-py3-none-any.whl"
        raise BundleError(
            f"no bundle is named, and none is installed: name the folder of one first, or pip install {wheel} (`make wheels` in a "
            "checkout of prunella writes it into dist/, `make demo` makes bundles)"
        )
    return found


def bundle_and_audio(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """What `[BUNDLE] FILE...` names: a bundle, or None for the installed one, and the audio files.

    The first word is a bundle unless it is audio: `-`, a file, or nothing that is there but named as audio is.

    Raises:
        UsageError: a bundle and no audio, or a bundle behind the audio.
    """
    first, *others = words
    if not _is_audio(first):
        if not others:
            raise UsageError(f"only the bundle {first} is named: name the audio files behind it")
        return first, others
    late = next((word for word in others if (Path(word) / _MANIFEST).is_file()), None)
    if late is not None:
        raise UsageError(
            f"{late} is a bundle and stands behind {first}: name it first, the audio files behind it"
        )
    return None, list(words)


def _is_audio(word: str) -> bool:
    path = Path(word)
    if word == "-" or path.exists():
        return word == "-" or not path.is_dir()
    return bool(_SUFFIX.search(path.name)) and not any(_holds_bundles(near) for near in nearest_paths(word))


def _holds_bundles(path: str) -> bool:
    folder = Path(path)
    return (folder / _MANIFEST).is_file() or any(folder.glob(f"*/{_MANIFEST}"))
