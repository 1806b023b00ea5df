"""Reading a bundle: the manifest's schema, verification by sha256, and errors that say what to do.

A bundle is a directory: `bundle.json`, `tokenizer.json`, and the graphs of at least one engine (`onnx/`, `gguf/`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from prunella.device_runtime.base.errors import BundleError
from prunella.device_runtime.base.files import bring_back, sha256
from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.device_runtime.base.suggestions import path_hint
from prunella.device_runtime.transcript import DecodeOptions

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"
_SHOWN = 300  # characters of a wrong value that an error repeats
# Files without which an engine cannot open a bundle.
ENGINE_FILES = {
    "onnx": ("onnx/audio_encoder.onnx", "onnx/embed_tokens.onnx", "onnx/decoder_model_merged.onnx"),
    "gguf": ("gguf/decoder-*.gguf",),
}
_MOST = 2**53  # beyond it a float is no longer every integer
# Checked where a manifest is read; constructors take what they are given. Bounds are far beyond any model, and below what
# would take the memory or the threads of whoever opens the bundle.
NotNegative = Annotated[int, Meta(ge=0, le=_MOST)]
Count = Annotated[int, Meta(ge=1, le=2**16)]
Size = Annotated[int, Meta(ge=1, le=2**26)]
Token = Annotated[int, Meta(ge=0, lt=2**26)]
Hertz = Annotated[int, Meta(ge=1_000, le=768_000)]
Samples = Annotated[int, Meta(ge=0, le=2**24)]
EngineName = Annotated[str, Meta(pattern="^(onnx|gguf)$")]


OptionValue = str | int | float | bool


@dataclass(frozen=True)
class Provider:
    """One execution provider of ONNX Runtime with its options, by the names that ONNX Runtime gives them."""

    name: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)


@dataclass(frozen=True)
class AudioSpec:
    """How samples become log-mel frames and frames become audio tokens."""

    sampling_rate: Hertz = 16_000
    num_mel_bins: Annotated[int, Meta(ge=1, le=2**12)] = 80
    samples_per_token: Annotated[int, Meta(ge=1, le=2**24)] = (
        1_600  # hop (160) * convolution stride (2) * stack factor (5)
    )
    extra_padding: Samples = 1_600  # zeros after the padding to whole stacks
    max_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 29.5  # longer recordings are split
    ctc_alphabet: str = ""  # letters that a CTC head hears beside the embeddings; none: there is no head


@dataclass(frozen=True)
class PromptSpec:
    """The fixed prompt around the audio, as text and as the token ids that the model was trained on."""

    before_audio: str
    after_audio: str
    before_ids: tuple[Token, ...]
    after_ids: tuple[Token, ...]
    eos_ids: Annotated[tuple[Token, ...], Meta(min_length=1)]
    text_style: Annotated[str, Meta(pattern="^(as-is|lower)$")] = "as-is"  # see text_style.py


@dataclass(frozen=True)
class DecoderSpec:
    """Shapes that an engine needs before it opens the graph."""

    num_layers: Count
    hidden_size: Size
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Size
    max_context: Size = 2_048


@dataclass(frozen=True)
class FileEntry:
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    bytes: NotNegative


@dataclass(frozen=True)
class BundleManifest:
    """`bundle.json`. `provenance` is free-form: base model, block, bridge, healing, recipe, WER before and after."""

    name: str
    family: str
    target: str
    engines: Annotated[tuple[EngineName, ...], Meta(min_length=1)]  # in order of preference: "onnx", "gguf"
    recipe: str
    audio: AudioSpec
    prompt: PromptSpec
    decoder: DecoderSpec
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    threads: Annotated[int, Meta(ge=0, le=2**12)] = 0  # 0: one per physical core
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
        """Canonical text, with a checksum of itself: a byte changed by accident is seen. It keeps no attacker away."""
        return _canonical(json.loads(json.dumps(asdict(self))))


def _canonical(body: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "manifest_sha256": digest}, indent=2, sort_keys=True) + "\n"


def parse_manifest(text: str, where: Path) -> BundleManifest:
    """Inverse of `BundleManifest.dumps`.

    Raises:
        BundleError: not JSON, another schema version, a checksum that does not match, a key or a value that does not
            fit (with its path, such as `$.decoder.head_dim`), or no file for one of the engines.
    """
    remedy = "export it again, or copy it again from where it came"
    try:
        body = json.loads(text)
        if not isinstance(body, dict):
            raise TypeError("not an object")
        body.pop("manifest_sha256", None)
        sealed = _canonical(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({error}): {remedy}") from error
    version = body.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {_shown(version)}, this prunella reads {SCHEMA_VERSION}: "
            "export the bundle again, or install the prunella that made it"
        )
    # Over the text as it was written: a later prunella may know more keys.
    if sealed != text:
        raise BundleError(f"{where} was changed after it was written (its checksum does not match): {remedy}")
    try:
        _check_keys(body)
        for part in body.keys() - {"provenance"}:
            _check_text(body[part], f"$.{part}")
        manifest = msgspec.convert(body, BundleManifest)
        _check_finite(asdict(replace(manifest, provenance={})), "$")
        _check_ids(manifest)
    except msgspec.ValidationError as error:
        reason = _shortened(" ".join(str(error).split()))
        raise BundleError(f"{where} does not fit the schema ({reason}): {remedy}") from error
    for engine in manifest.engines:
        for pattern in ENGINE_FILES[engine]:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in manifest.files):
                raise BundleError(f"{where} lists no {pattern}, which the engine {engine} needs: {remedy}")
    return manifest


def _shown(value: object) -> str:
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check_keys(body: dict[str, Any]) -> None:
    """msgspec passes over keys that a dataclass has not; here they are typing errors, or of another prunella."""
    parts: dict[str, tuple[Any, Any]] = {
        "$": (body, BundleManifest),
        "$.audio": (body.get("audio"), AudioSpec),
        "$.prompt": (body.get("prompt"), PromptSpec),
        "$.decoder": (body.get("decoder"), DecoderSpec),
        "$.decode": (body.get("decode"), DecodeOptions),
    }
    for path, (part, kind) in parts.items():
        known = [f.name for f in fields(kind)]
        unknown = [key for key in part if key not in known] if isinstance(part, dict) else []
        if unknown:
            raise msgspec.ValidationError(f"unknown key `{path}.{unknown[0]}`; keys: {', '.join(known)}")


def _check_text(value: Any, path: str) -> None:
    """Half of a character would be an error wherever it is used, of msgspec too."""
    if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise msgspec.ValidationError(f"Expected text, not half of a character - at `{path}`")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key, path)
            _check_text(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner, f"{path}[...]")


def _check_finite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise msgspec.ValidationError(f"Expected a finite number - at `{path}`")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_finite(inner, f"{path}.{key}")


def _check_ids(manifest: BundleManifest) -> None:
    for name in ("before_ids", "after_ids", "eos_ids"):
        largest = max(getattr(manifest.prompt, name), default=0)
        if largest >= manifest.decoder.vocab_size:
            raise msgspec.ValidationError(
                f"Expected tokens of the vocabulary, not {largest} - at `$.prompt.{name}`"
            )


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
                f"{manifest_path} lists {_shown(name)}, which is outside the bundle: do not trust it"
            )
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
