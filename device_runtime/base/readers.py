"""What readers of prunella's outputs do first; what writes them is loaded only where something was left half done."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

HIDDEN = ".prunella-"  # begins the names of our own unfinished things inside a folder
COMPLETE, ARRIVING = f"{HIDDEN}complete", f"{HIDDEN}arriving"


def bring_back(path: str | Path) -> None:
    """Bring back what a process that was killed while it replaced `path` left half done. Every reader calls it first."""
    path = Path(os.path.realpath(path))
    if path.exists() and not any((path / name).is_dir() for name in (COMPLETE, ARRIVING)):
        return
    from prunella.device_runtime.base.files import finish_replacing

    finish_replacing(path)


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's content."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
