"""Reading a bundle: the manifest's schema, verification by sha256, and errors that say what to do.

A bundle is a directory: `bundle.json`, `tokenizer.json`, and the graphs of at least one engine (`onnx/`, `gguf/`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from prunella.device_runtime.base.errors import BundleError, UsageError
from prunella.device_runtime.base.files import bring_back, sha256
from prunella.device_runtime.base.languages import primary_language
from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.device_runtime.base.suggestions import path_hint
from prunella.device_runtime.transcript import DecodeOptions

SCHEMA_VERSION = 2
MANIFEST_NAME = "bundle.json"
HOP_LENGTH = 160  # samples between two frames of features
_SHOWN = 300  # characters of a wrong value that an error repeats
_ASKED = 40  # characters of a language that nobody knows
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
Samples = Annotated[int, Meta(ge=0, le=2**20)]  # a minute: of 30 s windows, as of any padding
EngineName = Annotated[str, Meta(pattern="^(onnx|gguf)$")]


OptionValue = str | int | float | bool


@dataclass(frozen=True)
class Provider:
    """One execution provider of ONNX Runtime with its options, by the names that ONNX Runtime gives them."""

    name: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureSpec:
    """How samples become the audio encoder's input: padding, then Whisper's log-mel (`sound/features.py`).

    Attributes:
        kind: of the features.
        num_mel_bins: their number in a frame.
        min_samples: zeros are put behind shorter audio up to so many samples.
        multiple: zeros are put behind the audio up to a whole multiple of so many samples.
        extra: samples of zeros after that.
        frame_multiple: frames of zeros are put behind the features up to a whole multiple of so many frames.
        valid: which frames are audio's, which the encoder's graph is then told: "all" of them (it is not told), or as many
            as whole hops ("floor") or begun hops ("ceil") are in the audio after `min_samples`.
    """

    kind: Annotated[str, Meta(pattern="^log-mel$")] = "log-mel"
    num_mel_bins: Annotated[int, Meta(ge=1, le=2**10)] = 80
    min_samples: Samples = 0
    multiple: Annotated[int, Meta(ge=1, le=2**20)] = 1_600
    extra: Samples = 1_600
    frame_multiple: Annotated[int, Meta(ge=1, le=2**13)] = 1
    valid: Annotated[str, Meta(pattern="^(all|floor|ceil)$")] = "all"

    def padded(self, samples: int) -> int:
        """Of so many samples, as features are made of them."""
        least = max(samples, self.min_samples)
        return least + -least % self.multiple + self.extra

    def valid_frames(self, samples: int) -> int:
        """Frames of audio in the features of so many samples."""
        least = max(samples, self.min_samples)
        frames = {"all": self.padded(samples) // HOP_LENGTH, "floor": least // HOP_LENGTH}
        return frames.get(self.valid, -(-least // HOP_LENGTH))


@dataclass(frozen=True)
class AudioSpec:
    """How samples become features, and features become audio tokens."""

    sampling_rate: Hertz = 16_000
    features: FeatureSpec = field(default_factory=FeatureSpec)
    # The least that become one audio token: room is made by it.
    samples_per_token: Annotated[int, Meta(ge=1, le=2**24)] = (
        1_600  # hop (160) * convolution stride (2) * stack factor (5)
    )
    max_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 29.5  # longer recordings are split
    ctc_alphabet: str = ""  # letters that a CTC head hears beside the embeddings; none: there is no head

    def longest_tokens(self, seconds: float) -> int:
        """Most audio tokens that so many seconds become."""
        return self.features.padded(int(seconds * self.sampling_rate)) // self.samples_per_token + 2

    def heard_seconds(self, samples: int) -> float:
        """Seconds that a token cap is reckoned by: whole windows of silence behind the audio do not count."""
        windows = self.features.multiple >= self.sampling_rate
        return (samples if windows else self.features.padded(samples)) / self.sampling_rate


@dataclass(frozen=True)
class PromptSegment:
    """A piece of the prompt: `text` with its token ids, the "audio", or the slot of a "language"."""

    kind: Annotated[str, Meta(pattern="^(text|audio|language)$")]
    text: str = ""
    ids: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Language:
    """What stands in the prompt's language slot when this language is asked for."""

    code: str  # ISO 639-1, or 639-3 where that has none: "en", "yue"
    name: str  # in English
    text: str
    ids: tuple[Token, ...]


def find_language(languages: Sequence[Language], asked: str) -> Language | None:
    """One of the languages by its code, with or without a region, or its English name, any case; "" and "auto": None.

    Raises:
        UsageError: there is none, or not this one.
    """
    wanted = asked.strip().lower()
    if wanted in ("", "auto"):
        return None
    if not languages:
        raise UsageError("this model's prompt takes no language: leave it out")
    for way in (wanted, primary_language(asked)):
        for one in languages:
            if way in (one.code.lower(), one.name.lower()):
                return one
    names = ", ".join(f"{one.code} ({one.name})" for one in languages)
    raise UsageError(f"this model takes no language '{asked[:_ASKED]}': choose one of {names}")


@dataclass(frozen=True)
class PromptSpec:
    """The prompt, as text and as the token ids that the model was trained on.

    Attributes:
        segments: in order; exactly one is the audio, and a language slot stands behind it.
        eos_ids: tokens that end an answer; the first is the one that is taught.
        text_style: see text_style.py.
        answer: how the transcript is read out of what the model says, see answer.py.
        languages: that the slot takes.
        language: code of the one that is in it; "": none, and the model finds out.
    """

    segments: tuple[PromptSegment, ...]
    eos_ids: Annotated[tuple[Token, ...], Meta(min_length=1)]
    text_style: Annotated[str, Meta(pattern="^(as-is|lower)$")] = "as-is"
    answer: Annotated[str, Meta(pattern="^(as-is|language-tag|quoted)$")] = "as-is"
    languages: tuple[Language, ...] = ()
    language: str = ""

    @staticmethod
    def around_audio(
        before_audio: str,
        after_audio: str,
        before_ids: tuple[int, ...],
        after_ids: tuple[int, ...],
        eos_ids: tuple[int, ...],
        text_style: str = "as-is",
    ) -> PromptSpec:
        """The plain kind: a text, the audio, a text."""
        pieces = (
            PromptSegment("text", before_audio, before_ids),
            PromptSegment("audio"),
            PromptSegment("text", after_audio, after_ids),
        )
        return PromptSpec(pieces, eos_ids, text_style)

    @property
    def before_audio(self) -> str:
        """The text before the audio."""
        return "".join(piece.text for piece in self._filled(before=True))

    @property
    def after_audio(self) -> str:
        """The text behind the audio."""
        return "".join(piece.text for piece in self._filled(before=False))

    @property
    def before_ids(self) -> tuple[int, ...]:
        """Tokens before the audio."""
        return tuple(token for piece in self._filled(before=True) for token in piece.ids)

    @property
    def after_ids(self) -> tuple[int, ...]:
        """Tokens behind the audio."""
        return tuple(token for piece in self._filled(before=False) for token in piece.ids)

    @property
    def most_ids(self) -> int:
        """Most tokens around the audio, whatever the language, or that the answer takes to name it."""
        text = sum(len(piece.ids) for piece in self.segments)
        return text + max((len(one.ids) for one in self.languages), default=0)

    @property
    def opening_ids(self) -> int:
        """Most tokens that an answer says before its transcript: the longest language, where none is in the prompt."""
        tagged = self.answer == "language-tag" and not self.language
        return max((len(one.ids) for one in self.languages), default=0) if tagged else 0

    def with_language(self, asked: str) -> PromptSpec:
        """The prompt for a language, see `find_language`; "" leaves it to the model.

        Raises:
            UsageError: the model's prompt has no place for a language, or not for this one.
        """
        found = find_language(self.languages, asked)
        return replace(self, language=found.code if found else "")

    def _filled(self, *, before: bool) -> list[PromptSegment]:
        """Segments of text on one side of the audio, the language in its slot."""
        at = next(place for place, piece in enumerate(self.segments) if piece.kind == "audio")
        chosen = next((one for one in self.languages if one.code == self.language), None)
        pieces = []
        for piece in self.segments[:at] if before else self.segments[at + 1 :]:
            if piece.kind == "text":
                pieces.append(piece)
            elif chosen is not None:
                pieces.append(PromptSegment("text", chosen.text, chosen.ids))
        return pieces


@dataclass(frozen=True)
class DecoderSpec:
    """Shapes that an engine needs before it opens the graph."""

    num_layers: Count
    hidden_size: Size
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Size
    max_context: Annotated[int, Meta(ge=1, le=2**20)] = 2_048


@dataclass(frozen=True)
class MmprojSpec:
    """llama.cpp's own audio half of a bundle with GGUF files.

    Attributes:
        projector: llama.cpp's name of its layout; "": the bundle has none, and our encoder feeds llama.cpp's decoder alone.
        note: why there is none, or how what it hears differs from what the model was trained on.
        prompt_tokens: whether it brings along the prompt's last token before the audio and its first behind it.
    """

    projector: str = ""
    note: str = ""
    prompt_tokens: bool = False


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
    mmproj: MmprojSpec | None = None  # None: no GGUF files, or a bundle of before
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
    if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
        raise BundleError(
            f"{where} has schema version {_shown(version)}, this prunella reads 1 and {SCHEMA_VERSION}: "
            "export the bundle again, or install the prunella that made it"
        )
    # Over the text as it was written: a later prunella may know more keys.
    if sealed != text:
        raise BundleError(f"{where} was changed after it was written (its checksum does not match): {remedy}")
    try:
        body = upgraded(body)
        _check_keys(body)
        for part in body.keys() - {"provenance"}:
            _check_text(body[part], f"$.{part}")
        manifest = msgspec.convert(body, BundleManifest)
        _check_finite(asdict(replace(manifest, provenance={})), "$")
        _check_prompt(manifest)
        _check_room(manifest)
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
        "$.audio.features": (_within(body.get("audio"), "features"), FeatureSpec),
        "$.prompt": (body.get("prompt"), PromptSpec),
        "$.decoder": (body.get("decoder"), DecoderSpec),
        "$.decode": (body.get("decode"), DecodeOptions),
        "$.mmproj": (body.get("mmproj"), MmprojSpec),
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


def _check_prompt(manifest: BundleManifest) -> None:
    prompt = manifest.prompt
    kinds = [piece.kind for piece in prompt.segments]
    if (
        kinds.count("audio") != 1
        or kinds.count("language") > 1
        or "language" in kinds[: kinds.index("audio")]
    ):
        raise msgspec.ValidationError(
            "Expected one audio, and at most one language behind it - at `$.prompt.segments`"
        )
    if prompt.language and prompt.language not in [one.code for one in prompt.languages]:
        raise msgspec.ValidationError("Expected one of the languages - at `$.prompt.language`")
    lists = {"segments": [piece.ids for piece in prompt.segments], "eos_ids": [prompt.eos_ids]}
    lists["languages"] = [one.ids for one in prompt.languages]
    for name, found in lists.items():
        largest = max((token for ids in found for token in ids), default=0)
        if largest >= manifest.decoder.vocab_size:
            raise msgspec.ValidationError(
                f"Expected tokens of the vocabulary, not {largest} - at `$.prompt.{name}`"
            )


def _check_room(manifest: BundleManifest) -> None:
    """Here and not where the first long recording is cut off."""
    audio, prompt = manifest.audio, manifest.prompt
    needed = prompt.most_ids + audio.longest_tokens(audio.max_seconds) + 1
    if needed > manifest.decoder.max_context:
        raise msgspec.ValidationError(
            f"Expected at least {needed} positions, for the prompt and {audio.max_seconds:g} s of audio, not "
            f"{manifest.decoder.max_context} - at `$.decoder.max_context`"
        )


def upgraded(body: dict[str, Any]) -> dict[str, Any]:
    """The object of a manifest, in today's schema: version 1 had one kind of features and a prompt of two texts.

    Raises:
        msgspec.ValidationError: a key of version 1 is of no use in it.
    """
    if body.get("schema_version") != 1:
        return body
    audio, prompt = body.get("audio"), body.get("prompt")
    if not isinstance(audio, dict) or not isinstance(prompt, dict):
        return {**body, "schema_version": SCHEMA_VERSION}
    renamed = {"num_mel_bins": "num_mel_bins", "samples_per_token": "multiple", "extra_padding": "extra"}
    now = {key: value for key, value in audio.items() if key not in renamed or key == "samples_per_token"}
    now["features"] = {new: audio[old] for old, new in renamed.items() if old in audio}
    texts = ("before_audio", "after_audio", "before_ids", "after_ids")
    missing = [key for key in texts if key not in prompt]
    if missing:
        raise msgspec.ValidationError(f"Object missing required field `{missing[0]}` - at `$.prompt`")
    around = [
        {"kind": "text", "text": prompt[f"{side}_audio"], "ids": prompt[f"{side}_ids"]}
        for side in ("before", "after")
    ]
    then = {key: value for key, value in prompt.items() if key not in texts}
    then["segments"] = [around[0], {"kind": "audio"}, around[1]]
    return {**body, "schema_version": SCHEMA_VERSION, "audio": now, "prompt": then}


def _within(part: Any, key: str) -> Any:
    return part.get(key) if isinstance(part, dict) else None


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
