"""Beside the archive, what updaters of fleets take: an OCI artifact, a Mender artifact, an image for systemd-sysext.

An OCI layout is written here. Where mender-artifact or mksquashfs is not on this machine, its exact recipe is written instead.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from prunella.deployment.device.launcher import write_launcher
from prunella.deployment.release import Release
from prunella.deployment.service_files import TEMPLATES
from prunella.device_runtime.base.errors import ExportError
from prunella.device_runtime.base.files import whole_directory, whole_file, write_text
from prunella.targets.profile import TargetProfile

_TYPE = "application/vnd.prunella.release.v1"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_EMPTY = b"{}"  # of an artifact that has no configuration, as OCI's guidance has it


def oci(archive: Path, release: Release, target: TargetProfile) -> tuple[Path, ...]:
    """An OCI image layout in a tar: `oras cp --from-oci-layout X.oci.tar:ID REGISTRY/NAME:ID`, or skopeo, push it.

    The archive is the one layer, whose title names the file.
    """
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str, **more: object) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data), **more}

    layer = blob(archive.read_bytes(), _LAYER, annotations={"org.opencontainers.image.title": archive.name})
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "artifactType": _TYPE,
        "config": blob(_EMPTY, "application/vnd.oci.empty.v1+json"),
        "layers": [layer],
        "annotations": {
            "org.opencontainers.image.version": release.id,
            "prunella.target": release.target,
            "prunella.recipe": release.recipe,
        },
    }
    named = {"org.opencontainers.image.ref.name": release.id}
    index = {
        "schemaVersion": 2,
        "manifests": [blob(_text(manifest), _MANIFEST, artifactType=_TYPE, annotations=named)],
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": _text(index),
        **{f"blobs/sha256/{digest}": data for digest, data in sorted(blobs.items())},
    }
    path = _beside(archive, "oci.tar")
    with whole_file(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as layout:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            layout.addfile(entry, io.BytesIO(data))
    return (path,)


def mender(archive: Path, release: Release, target: TargetProfile) -> tuple[Path, ...]:
    """A Mender artifact for the update module `prunella`, and the module, which devices have in /usr/share/mender/modules/v3."""
    module = archive.parent / "mender-module" / "prunella"
    with whole_file(module, mode=0o755) as partial:
        partial.write_bytes((TEMPLATES / "mender-module").read_bytes())
        partial.chmod(0o755)
    path = _beside(archive, "mender")
    command = ["mender-artifact", "write", "module-image", "--type", "prunella", "--device-type", target.name]
    command += ["--artifact-name", f"prunella-{release.bundle}-{release.id}", "--file", archive.name]
    command += ["--software-name", "prunella", "--software-version", release.id, "--output-path", path.name]
    return (_made_or_told(command, path, archive.parent), module)


def sysext(archive: Path, release: Release, target: TargetProfile) -> tuple[Path, ...]:
    """A folder that systemd-sysext merges into /opt and /usr, and the squashfs image of it."""
    folder = _beside(archive, "sysext")
    with whole_directory(folder) as partial:
        _sysext_tree(archive, release, partial)
    path = _beside(archive, "raw")  # systemd asks for the name of its extension-release file
    command = ["mksquashfs", folder.name, path.name, "-all-root", "-noappend", "-quiet", "-comp", "zstd"]
    command += ["-all-time", "315532800", "-mkfs-time", "315532800"]
    return (_made_or_told(command, path, archive.parent), folder)


FORMATS: dict[str, Callable[[Path, Release, TargetProfile], tuple[Path, ...]]] = {
    "mender": mender,
    "oci": oci,
    "sysext": sysext,
}


def _sysext_tree(archive: Path, release: Release, folder: Path) -> None:
    """The release as install.sh leaves it, but for what only a device does: bytecode, the self-test, settings."""
    opt = folder / "opt" / "prunella" / "releases" / release.id
    opt.parent.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="prunella-") as scratch:
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        (source,) = Path(scratch).iterdir()
        for kept in release.kept:
            if (source / kept).is_dir():
                shutil.copytree(source / kept, opt / kept)
            else:
                opt.mkdir(exist_ok=True)
                shutil.copyfile(source / kept, opt / kept)
        for wheel in sorted((source / "wheels").glob("*.whl")):
            if not wheel.name.startswith("pip-"):
                shutil.unpack_archive(wheel, opt / "site", "zip")
    write_launcher(opt, release.bundle, f"/usr/bin/python{release.python}")
    (folder / "opt" / "prunella" / "current").symlink_to(f"releases/{release.id}")
    units = folder / "usr" / "lib" / "systemd" / "system"
    units.mkdir(parents=True)
    for unit in sorted((opt / "systemd").glob("*.service")):
        # Settings lie where the image is not: /etc stays the device's own.
        text = (
            unit.read_text().replace("-@PREFIX@/etc/", "-/etc/prunella/").replace("@PREFIX@", "/opt/prunella")
        )
        (units / unit.name).write_text(text)
    marks = folder / "usr" / "lib" / "extension-release.d"
    marks.mkdir()
    architecture = {"aarch64": "arm64", "x86_64": "x86-64"}.get(release.arch, release.arch)
    (marks / f"extension-release.{folder_name(archive)}").write_text(
        f"ID=_any\nARCHITECTURE={architecture}\n"
    )


def folder_name(archive: Path) -> str:
    """Of a sysext image, which its extension-release file must repeat."""
    return archive.name.removesuffix(".tar.gz")


def _made_or_told(command: list[str], path: Path, folder: Path) -> Path:
    """Run a tool in a folder → what it made; where the tool is not here → the script that makes it."""
    if shutil.which(command[0]) is None:
        script = path.with_name(f"{path.name}.sh")
        words = " ".join(
            f"'{word}'" if not word.replace("-", "").replace(".", "").isalnum() else word for word in command
        )
        write_text(
            script,
            f"#!/bin/sh\n# {command[0]} is not on the machine that packed this; with it this makes {path.name}.\n"
            f'cd "$(dirname "$0")" && {words}\n',
        )
        script.chmod(0o755)
        return script
    path.unlink(missing_ok=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ExportError(
            f"{command[0]} failed ({' '.join(done.stderr.split()[-30:])}): run it by hand to see why"
        )
    return path


def _beside(archive: Path, suffix: str) -> Path:
    return archive.with_name(f"{archive.name.removesuffix('.tar.gz')}.{suffix}")


def _text(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
