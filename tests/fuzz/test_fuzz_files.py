"""Files that people hand in: whatever is in them, they are read or refused in words."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import soundfile
from fuzz.harness import fuzz
from fuzz.strategies import MANIFESTS, PHRASES, WAVS, bundle_bodies, json_text
from fuzz.variations import vary_bytes, vary_json, vary_text
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from prunella.device_runtime.base.errors import AudioError, BundleError, ManifestError, UsageError
from prunella.device_runtime.base.files import sha256
from prunella.device_runtime.bundle import (
    MANIFEST_NAME,
    AudioSpec,
    BundleManifest,
    DecoderSpec,
    FeatureSpec,
    FileEntry,
    Language,
    PromptSegment,
    PromptSpec,
    open_bundle,
)
from prunella.device_runtime.decoding.phrase_grammar import MAX_PHRASES, parse_phrases
from prunella.device_runtime.decoding.phrases import PhraseTrie
from prunella.device_runtime.info import describe, to_json
from prunella.device_runtime.live.pcm_stream import PcmStream
from prunella.device_runtime.sound.audio import load_audio
from prunella.evaluation.manifest import read_manifest

pytestmark = pytest.mark.slow

LONGEST_MESSAGE = 2_000  # characters: an error that repeats what it was given is no help


def _said(error: Exception) -> None:
    message = str(error)
    assert message and len(message.splitlines()) == 1 and len(message) <= LONGEST_MESSAGE, message[:5_000]


def test_manifests(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1_600), 16_000)
    path = tmp_path / "manifest.jsonl"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        report = io.StringIO()
        try:
            manifest = read_manifest(path, report=report)
        except ManifestError as error:
            _said(error)
            return
        assert len(report.getvalue().split("\n")) == len(manifest.problems) + 1
        for utterance in manifest.utterances:
            assert 0 < utterance.duration < math.inf and utterance.text.strip()
            try:
                assert len(utterance.load())
            except AudioError as error:
                _said(error)
        assert manifest.limit(1, seed=0).seconds > 0
        assert len(manifest.only(manifest.sources)) == len(manifest)

    fuzz("manifests", MANIFESTS, check, vary_bytes)


def test_bundle_manifests(tmp_path):
    folder = tmp_path / "bundle"
    (folder / "onnx").mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    for graph in ("audio_encoder", "embed_tokens", "decoder_model_merged"):
        (folder / "onnx" / f"{graph}.onnx").write_bytes(bytes(range(200)))
    files = {
        file.relative_to(folder).as_posix(): FileEntry(sha256(file), file.stat().st_size)
        for file in folder.rglob("*.*")
        if file.is_file()
    }
    pieces = (
        PromptSegment("text", "user\n", (1,)),
        PromptSegment("audio"),
        PromptSegment("text", "<|im_end|>", (2,)),
        PromptSegment("language"),
    )
    languages = (
        Language("en", "English", "language English", (5, 6)),
        Language("yue", "Cantonese", "c", (7,)),
    )
    prompt = PromptSpec(pieces, (2, 0), answer="language-tag", languages=languages, language="yue")
    provenance = {"block": "13:16", "wer": {"before": 31.7, "after": 33.1}}
    manifest = BundleManifest(
        "tiny",
        "ultravox",
        "x86-cpu",
        ("onnx",),
        "int4",
        AudioSpec(
            features=FeatureSpec(num_mel_bins=128, min_samples=8_000, frame_multiple=100, valid="floor")
        ),
        prompt,
        DecoderSpec(2, 4, 1, 4, 300),
        provenance=provenance,
        files=files,
    )
    path = folder / MANIFEST_NAME
    intact = manifest.dumps()
    # As version 1 wrote it.
    old = json.loads(
        replace(
            manifest, audio=AudioSpec(), prompt=PromptSpec.around_audio("u", "e", (1,), (2,), (2,))
        ).dumps()
    )
    old |= {
        "schema_version": 1,
        "audio": {"num_mel_bins": 80, "samples_per_token": 1_600, "extra_padding": 1_600},
    }
    old["prompt"] = {
        "before_audio": "u",
        "after_audio": "e",
        "before_ids": [1],
        "after_ids": [2],
        "eos_ids": [2],
    }
    path.write_bytes(_sealed(old))
    assert open_bundle(folder).manifest.prompt.after_ids == (2,)
    path.write_text(intact)
    open_bundle(folder)
    taken = 0

    def check(content: bytes) -> None:
        nonlocal taken
        path.write_bytes(content)
        try:
            bundle = open_bundle(folder)
        except BundleError as error:
            _said(error)
            return
        taken += 1
        assert describe(bundle) and json.dumps(to_json(bundle))
        audio, asked = bundle.manifest.audio, bundle.manifest.prompt
        assert (
            audio.features.padded(16_000) < 2**21
            and audio.longest_tokens(1.0) < bundle.manifest.decoder.max_context
        )
        for one in asked.languages:
            told = asked.with_language(one.name).after_ids
            assert len(told) <= asked.most_ids
        assert parse_again(bundle.manifest) == bundle.manifest or b"NaN" in content

    def parse_again(again: BundleManifest) -> BundleManifest:
        path.write_text(again.dumps())
        return open_bundle(folder).manifest

    def vary(body: dict | bytes, random: Random) -> dict | bytes:
        return vary_bytes(body, random) if isinstance(body, bytes) else vary_json(body, random)

    inputs = bundle_bodies(json.loads(intact)) | bundle_bodies(old) | st.just(intact.encode())
    fuzz("bundles", inputs, check, vary, lambda one: one if isinstance(one, bytes) else _sealed(one))
    assert taken, "none got as far as being read"


def _sealed(body: dict) -> bytes:
    """With the checksum that fits, so that what is in it is looked at; too deep for Python's encoder: without."""
    body = {key: value for key, value in body.items() if key != "manifest_sha256"}
    with contextlib.suppress(RecursionError, ValueError):
        body = json.loads(json_text(body))
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        return (json.dumps({**body, "manifest_sha256": digest}, indent=2, sort_keys=True) + "\n").encode()
    return json_text(body).encode()


@pytest.mark.parametrize("text_style", ["as-is", "lower"])
def test_phrases(text_style):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()

    def check(text: str) -> None:
        try:
            phrases = parse_phrases(text)
            trie = PhraseTrie(phrases, tokenizer, (0,), text_style)
        except UsageError as error:
            _said(error)
            return
        assert 1 <= trie.count <= len(phrases) <= MAX_PHRASES
        assert all(phrase.text.strip() for phrase in phrases)
        for phrase in phrases[:3]:
            spoken = phrase.text.split()
            assert all(word in spoken for _, value in phrase.slots for word in value.split())

    fuzz(f"phrases-{text_style}", PHRASES, check, vary_text)


@pytest.mark.filterwarnings(
    "error::pytest.PytestUnraisableExceptionWarning"
)  # what a C library's callback raised
def test_wav_headers(monkeypatch):
    monkeypatch.setenv("PATH", "")  # no ffmpeg, which would have to be started for most of them

    def check(data: bytes) -> None:
        for read in (lambda: load_audio(io.BytesIO(data), max_seconds=60.0), lambda: _streamed(data)):
            try:
                samples = read()
            except AudioError as error:
                _said(error)
            else:
                assert samples.dtype == np.float32 and samples.ndim == 1

    fuzz("wavs", WAVS, check, vary_bytes)


def _streamed(data: bytes) -> np.ndarray:
    blocks = [block.samples for block in PcmStream(io.BytesIO(data))]
    return np.concatenate([block.mean(axis=1) if block.ndim == 2 else block for block in blocks])
