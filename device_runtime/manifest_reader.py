"""`bundle.json` to a manifest: schema, checksum, and errors that name what does not fit by its path."""

from __future__ import annotations

import fnmatch
import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from prunella.device_runtime.base.characters import has_half_characters
from prunella.device_runtime.base.errors import BundleError
from prunella.device_runtime.manifest import (
    SCHEMA_VERSION,
    AudioSpec,
    BundleManifest,
    DecoderSpec,
    FeatureSpec,
    MmprojSpec,
    PromptSpec,
    canonical,
)
from prunella.device_runtime.transcript import DecodeOptions

_SHOWN = 300  # characters of a wrong value that an error repeats
# Files without which an engine cannot open a bundle.
ENGINE_FILES = {
    "onnx": ("onnx/audio_encoder.onnx", "onnx/embed_tokens.onnx", "onnx/decoder_model_merged.onnx"),
    "gguf": ("gguf/decoder-*.gguf",),
}


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
        sealed = canonical(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({error}): {remedy}") from error
    version = body.get("schema_version")
    if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
        raise BundleError(
            f"{where} has schema version {shown(version)}, this prunella reads 1 and {SCHEMA_VERSION}: "
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


def shown(value: object) -> str:
    """A value in an error, shortened."""
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
    if isinstance(value, str) and has_half_characters(value):
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
        or kinds.count("vocabulary") > 1
        or "language" in kinds[: kinds.index("audio")]
    ):
        raise msgspec.ValidationError(
            "Expected one audio, at most one language behind it, and one vocabulary - at `$.prompt.segments`"
        )
    if prompt.language and prompt.language not in [one.code for one in prompt.languages]:
        raise msgspec.ValidationError("Expected one of the languages - at `$.prompt.language`")
    lists = {"segments": [piece.ids for piece in prompt.segments], "eos_ids": [prompt.eos_ids]}
    lists["languages"] = [one.ids for one in prompt.languages]
    lists["time_marks"] = [mark.ids for mark in prompt.time_marks]
    for name, found in lists.items():
        largest = max((token for ids in found for token in ids), default=0)
        if largest >= manifest.decoder.vocab_size:
            raise msgspec.ValidationError(
                f"Expected tokens of the vocabulary, not {largest} - at `$.prompt.{name}`"
            )
    places = [mark.after for mark in prompt.time_marks]
    if places != sorted(set(places)):
        raise msgspec.ValidationError("Expected places that rise - at `$.prompt.time_marks`")
    if prompt.languages and "language" not in kinds:
        raise msgspec.ValidationError("Expected a place for a language - at `$.prompt.segments`")


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
    later = {
        "audio": ("features",),
        "prompt": ("segments", "answer", "languages", "language", "time_marks"),
    }
    for part, keys in later.items():
        if unknown := [key for key in keys if key in body[part]]:
            raise msgspec.ValidationError(f"version 1 has no key `$.{part}.{unknown[0]}`")
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
