"""Reading a bundle: the manifest's schema, verification by sha256, and errors that say what to do.

A bundle is a directory: `bundle.json`, `tokenizer.json`, and the graphs of at least one engine (`onnx/`, `gguf/`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from prunella.device_runtime.errors import BundleError
from prunella.device_runtime.files import bring_back, sha256
from prunella.device_runtime.providers import OptionValue, Provider
from prunella.device_runtime.transcript import DecodeOptions

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"


@dataclass(frozen=True)
class AudioSpec:
    """How samples become log-mel frames and frames become audio tokens."""

    sampling_rate: int = 16_000
    num_mel_bins: int = 80
    samples_per_token: int = 1_600  # hop (160) * convolution stride (2) * stack factor (5)
    extra_padding: int = 1_600  # zeros after the padding to whole stacks
    max_seconds: float = 29.5  # longer recordings are split
    ctc_alphabet: str = ""  # letters that a CTC head hears beside the embeddings; none: there is no head


@dataclass(frozen=True)
class PromptSpec:
    """The fixed prompt around the audio, as text and as the token ids that the model was trained on."""

    before_audio: str
    after_audio: str
    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    text_style: str = "as-is"  # see text_style.py


@dataclass(frozen=True)
class DecoderSpec:
    """Shapes that an engine needs before it opens the graph."""

    num_layers: int
    hidden_size: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int = 2_048


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class BundleManifest:
    """`bundle.json`. `provenance` is free-form: base model, block, bridge, healing, recipe, WER before and after."""

    name: str
    family: str
    target: str
    engines: tuple[str, ...]  # in order of preference: "onnx", "gguf"
    recipe: str
    audio: AudioSpec
    prompt: PromptSpec
    decoder: DecoderSpec
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    threads: int = 0  # 0: one per physical core
    providers: tuple[Provider, ...] = ()  # of ONNX Runtime, in order of preference; none: the processor
    llama: dict[str, OptionValue] = field(default_factory=dict)  # llama.cpp's settings, by its own names
    precision: dict[str, str] = field(
        default_factory=dict
    )  # parts that the target stores otherwise than the recipe
    provenance: dict[str, Any] = field(default_factory=dict)
    created_by: str = ""
    files: dict[str, FileEntry] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def dumps(self) -> str:
        """Canonical text, with a checksum of itself so that a changed byte in the manifest is seen too."""
        return _canonical(json.loads(json.dumps(asdict(self))))


def _canonical(body: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "manifest_sha256": digest}, indent=2, sort_keys=True) + "\n"


def parse_manifest(text: str, where: Path) -> BundleManifest:
    """Inverse of `BundleManifest.dumps`.

    Raises:
        BundleError: not JSON, another schema version, a missing or unknown key, or a checksum that does not match.
    """
    remedy = "export it again, or copy it again from where it came"
    try:
        body = json.loads(text)
        if not isinstance(body, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError) as error:
        raise BundleError(f"{where} is not valid JSON ({error}): {remedy}") from error
    version = body.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version!r}, this prunella reads {SCHEMA_VERSION}: "
            "export the bundle again, or install the prunella that made it"
        )
    body.pop("manifest_sha256", None)
    # Over the text as it was written: a later prunella may know more keys.
    if _canonical(body) != text:
        raise BundleError(f"{where} was changed after it was written (its checksum does not match): {remedy}")
    try:
        prompt: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in body["prompt"].items()
        }
        nested = {
            "audio": AudioSpec(**body["audio"]),
            "prompt": PromptSpec(**prompt),
            "decoder": DecoderSpec(**body["decoder"]),
            "decode": DecodeOptions(**body["decode"]),
            "engines": tuple(body["engines"]),
            "providers": tuple(Provider(**entry) for entry in body.get("providers", ())),
            "files": {name: FileEntry(**entry) for name, entry in body["files"].items()},
        }
        manifest = BundleManifest(**{**body, **nested})
    except (KeyError, TypeError, AttributeError) as error:
        known = ", ".join(f.name for f in fields(BundleManifest))
        reason = " ".join(str(error).split())
        raise BundleError(f"{where} does not fit the schema ({reason}; keys: {known}): {remedy}") from error
    return manifest


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


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Read and check a bundle.

    Args:
        path: the bundle's directory.
        verify: also hash every file (about 0.5 s for 500 MB); sizes are always checked.

    Raises:
        BundleError: missing or corrupt, with the file's name and the remedy.
    """
    path = Path(path)
    bring_back(path)
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise BundleError(
            f"{path} {state}: a bundle is a directory made by `prunella export` or `prunella build`"
        )
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
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
            raise BundleError(f"{manifest_path} lists {name!r}, which is outside the bundle: do not trust it")
        if not file.is_file():
            raise BundleError(f"{file} is missing: export the bundle again, or copy it again")
        size = file.stat().st_size
        if size != entry.bytes:
            raise BundleError(
                f"{file} has {size} bytes, expected {entry.bytes}: it was cut short or changed; copy it again"
            )
        if verify and sha256(file) != entry.sha256:
            raise BundleError(
                f"{file} is corrupt (its sha256 does not match): copy it again or export the bundle again"
            )
    return Bundle(path, manifest)
