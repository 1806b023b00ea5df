"""Reading a bundle: verification by sha256, and errors that say what to do.

A bundle is a directory: `bundle.json`, `tokenizer.json`, and the graphs of at least one engine (`onnx/`, `gguf/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunella.device_runtime.base.errors import BundleError
from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.device_runtime.base.readers import bring_back
from prunella.device_runtime.base.suggestions import path_hint
from prunella.device_runtime.base.verified_files import first_that_differs

# What a manifest is made of belongs to what a bundle is: others find it here.
from prunella.device_runtime.manifest import HOP_LENGTH as HOP_LENGTH
from prunella.device_runtime.manifest import AudioSpec as AudioSpec
from prunella.device_runtime.manifest import Buckets as Buckets
from prunella.device_runtime.manifest import BundleManifest as BundleManifest
from prunella.device_runtime.manifest import DecoderSpec as DecoderSpec
from prunella.device_runtime.manifest import FeatureSpec as FeatureSpec
from prunella.device_runtime.manifest import FileEntry as FileEntry
from prunella.device_runtime.manifest import Language as Language
from prunella.device_runtime.manifest import MmprojSpec as MmprojSpec
from prunella.device_runtime.manifest import OptionValue as OptionValue
from prunella.device_runtime.manifest import PromptSegment as PromptSegment
from prunella.device_runtime.manifest import PromptSpec as PromptSpec
from prunella.device_runtime.manifest import Provider as Provider
from prunella.device_runtime.manifest import TimeMark as TimeMark
from prunella.device_runtime.manifest import find_language as find_language
from prunella.device_runtime.manifest_reader import ENGINE_FILES as ENGINE_FILES
from prunella.device_runtime.manifest_reader import parse_manifest, shown

MANIFEST_NAME = "bundle.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files were checked."""

    path: Path
    manifest: BundleManifest

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self.manifest.files:
            have = ", ".join(sorted(self.manifest.files)) or "nothing"
            raise BundleError(
                f"{self.path} holds no {name} (it holds {have}): export it again for the engine you want"
            )
        return self.path / name

    @property
    def total_bytes(self) -> int:
        """Bytes of all listed files."""
        return sum(entry.bytes for entry in self.manifest.files.values())


def open_bundle(path: str | Path, *, verify: bool = True, remembered: bool = False) -> Bundle:
    """Read and check a bundle.

    Args:
        path: the bundle's directory.
        verify: also hash every file (about 0.5 s for 500 MB); sizes are always checked.
        remembered: not those that were hashed before and have not been touched since (`base/verified_files.py`).

    Raises:
        BundleError: missing or corrupt, with the file's name and the remedy.
    """
    path = Path(path)
    bring_back(path)
    if not path.is_dir():
        if str(path) in EMBEDDED and not path.exists():
            raise BundleError(
                f"{path} is a model, not a bundle: `prunella export {path} --target x86-cpu` makes one of it"
            )
        state = "is a file" if path.exists() else f"does not exist{path_hint(path)}"
        raise BundleError(
            f"{path} {state}: a bundle is a directory made by `prunella export` or `prunella build`"
        )
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
        within = sorted(str(found.parent) for found in path.glob(f"*/{MANIFEST_NAME}"))
        if within:
            raise BundleError(f"{path} is no bundle, but holds some: name one of {', '.join(within)}")
        raise BundleError(
            f"{path} holds no {MANIFEST_NAME}: not a bundle; `prunella export MODEL --target ...` makes one"
        )
    try:
        text = manifest_path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{manifest_path} is not valid JSON (not UTF-8): export it again") from error
    manifest = parse_manifest(text, manifest_path)
    root = path.resolve()
    for name, entry in manifest.files.items():
        file = path / name
        if "\0" in name or not file.resolve().is_relative_to(root):
            raise BundleError(
                f"{manifest_path} lists {shown(name)}, which is outside the bundle: do not trust it"
            )
        if not file.is_file():
            raise BundleError(f"{file} is missing: export the bundle again, or copy it again")
        size = file.stat().st_size
        if size != entry.bytes:
            raise BundleError(
                f"{file} has {size} bytes, expected {entry.bytes}: it was cut short or changed; copy it again"
            )
    if verify:
        digests = {name: entry.sha256 for name, entry in manifest.files.items()}
        corrupt = first_that_differs(path, digests, remembered=remembered)
        if corrupt is not None:
            raise BundleError(
                f"{path / corrupt} is corrupt (its sha256 does not match): copy it again or export the bundle again"
            )
    _check_unlisted(path, manifest)
    return Bundle(path, manifest)


def _check_unlisted(path: Path, manifest: BundleManifest) -> None:
    """A graph that no checksum stands for could be opened with the others: as the weights of one of them, for example."""
    for folder in ENGINE_FILES:
        for file in sorted((path / folder).glob("[!.]*")):
            name = f"{folder}/{file.name}"
            if any(part in file.name for part in (".onnx", ".gguf")) and name not in manifest.files:
                raise BundleError(
                    f"{path / MANIFEST_NAME} lists no {name}, which is there: move it elsewhere if it is yours, else "
                    "export the bundle again, or copy it again"
                )
