"""The wheel of the prunella that runs here, from its own files: no build, no network, the same bytes each time."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunella._version import __version__
from prunella.device_runtime.base.errors import ExportError
from prunella.device_runtime.base.install_lines import PACKAGE_FOLDER, wheel_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WHEEL = "Wheel-Version: 1.0\nGenerator: prunella\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say


def write_own_wheel(folder: Path) -> Path:
    """Write it into `folder` → its path.

    Raises:
        ExportError: this prunella is no checkout, and was installed without its metadata.
    """
    project = PACKAGE_FOLDER / "pyproject.toml"
    if project.is_file():
        metadata, points = _of_checkout(tomllib.loads(project.read_text(encoding="utf-8"))["project"])
    else:
        metadata, points = _of_installation()
    info = f"prunella-{__version__}.dist-info"
    entries = {
        f"prunella/{path.relative_to(PACKAGE_FOLDER).as_posix()}": path.read_bytes() for path in _files()
    }
    entries[f"{info}/METADATA"] = metadata.encode()
    entries[f"{info}/WHEEL"] = _WHEEL.encode()
    entries[f"{info}/entry_points.txt"] = points.encode()
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in sorted(entries.items()))
    entries[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / wheel_name()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(entries, key=lambda one: (".dist-info/" in one, one)):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, entries[name])
    return path


def _of_checkout(project: dict[str, Any]) -> tuple[str, str]:
    """METADATA and entry points from pyproject.toml: what was installed from the checkout may be older than it."""
    from packaging.requirements import Requirement  # the extra `deploy`

    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {__version__}"]
    lines += [f"License-Expression: {project['license']}", f"Requires-Python: {project['requires-python']}"]
    lines += [f"Requires-Dist: {needed}" for needed in project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        for text in requirements:
            one = Requirement(text)
            asked = f"({one.marker}) and " if one.marker else ""
            one.marker = None
            lines.append(f"Requires-Dist: {one} ; {asked}extra == '{extra}'")
    scripts = "".join(f"{name} = {place}\n" for name, place in project["scripts"].items())
    return "\n".join(lines) + "\n", f"[console_scripts]\n{scripts}"


def _of_installation() -> tuple[str, str]:
    try:
        distribution = importlib.metadata.distribution("prunella")
    except importlib.metadata.PackageNotFoundError as error:
        raise ExportError("prunella is not installed here, only lies here: pip install it first") from error
    metadata = distribution.read_text("METADATA")
    if not metadata:
        raise ExportError("prunella was installed without its metadata: install it again")
    return metadata, distribution.read_text("entry_points.txt") or ""


def _files() -> Iterator[Path]:
    """The packages' own files: of a checkout by what pyproject.toml lists, else all that lie in the package."""
    project = PACKAGE_FOLDER / "pyproject.toml"
    if not project.is_file():
        yield from sorted(
            path for path in PACKAGE_FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts
        )
        return
    setup = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["setuptools"]
    for package in sorted(setup["packages"]):
        folder = PACKAGE_FOLDER.joinpath(*package.split(".")[1:])
        patterns = ["*.py", *setup["package-data"].get(package, ())]
        yield from sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
