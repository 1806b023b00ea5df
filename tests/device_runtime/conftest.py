"""A small real tokenizer, a scripted engine, and a bundle folder with dummy graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from prunella.device_runtime.base.files import sha256
from prunella.device_runtime.bundle import (
    MANIFEST_NAME,
    AudioSpec,
    BundleManifest,
    DecoderSpec,
    FileEntry,
    PromptSpec,
)
from prunella.device_runtime.transcriber import Transcriber
from prunella.device_runtime.transcript import DecodeOptions

EOS = 2
AUDIO = AudioSpec()
PROMPT = PromptSpec.around_audio("<|im_start|>user\n", "<|im_end|>", (1,), (EOS,), (EOS,))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE, as the reference's decoder has, trained on one sentence."""
    tiny = Tokenizer(models.BPE())
    tiny.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tiny.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tiny.train_from_iterator(["go forward ten meters and stop"], trainer)
    return tiny


@dataclass
class ScriptedEngine:
    """Says one script of token ids per utterance, whatever it hears, and keeps count of what it was asked."""

    scripts: list[list[int]]
    vocab_size: int
    name: str = "scripted"
    near_tie_margin: float = 0.0
    ctc_log_probs: None = None
    heard: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)

    def encode(self, samples):
        self.heard.append(len(samples))
        padded = AUDIO.features.padded(len(samples))
        return np.zeros((padded // AUDIO.samples_per_token, 4), np.float32)

    def start(self, audio_embeddings):
        self.script = iter(self.scripts[len(self.heard) - 1])
        return self._next()

    def step(self, token):
        self.steps.append(token)
        return self._next()

    def extend(self, tokens):
        return np.stack([self.step(token) for token in tokens])

    def rewind(self, count):
        assert count == 0, "a script cannot be wound back"

    def token_embeddings(self, tokens):
        return None

    def score(self, audio_embeddings, tokens):
        self.scored = list(tokens)
        return np.full(len(tokens), 0.5, np.float32)

    def _next(self):
        logits = np.zeros(self.vocab_size, np.float32)
        logits[next(self.script)] = 1.0
        return logits


@pytest.fixture
def scripted(tokenizer) -> Callable[..., Transcriber]:
    """A transcriber whose engine says the given texts (or token ids), one an utterance, each ended by EOS."""

    def make(*said: str | list[int], options: DecodeOptions | None = None) -> Transcriber:
        scripts = [[*(tokenizer.encode(text).ids if isinstance(text, str) else text), EOS] for text in said]
        engine = ScriptedEngine(scripts, tokenizer.get_vocab_size())
        return Transcriber(engine, tokenizer, AUDIO, PROMPT, options or DecodeOptions())

    return make


@pytest.fixture
def write_bundle(tmp_path, tokenizer) -> Callable[..., Path]:
    """Write a bundle whose graphs are a few bytes; keyword arguments replace fields of the manifest."""

    def write(name: str = "bundle", **changes) -> Path:
        folder = tmp_path / name
        (folder / "onnx").mkdir(parents=True)
        (folder / "tokenizer.json").write_text(tokenizer.to_str())
        for graph in ("audio_encoder", "embed_tokens", "decoder_model_merged"):
            (folder / "onnx" / f"{graph}.onnx").write_bytes(bytes(range(200)))
        if "gguf" in changes.get("engines", ()):
            (folder / "gguf").mkdir()
            (folder / "gguf" / "decoder-F16.gguf").write_bytes(b"GGUF")
        files = {
            file.relative_to(folder).as_posix(): FileEntry(sha256(file), file.stat().st_size)
            for file in folder.rglob("*")
            if file.is_file()
        }
        fields = {
            "name": "tiny",
            "family": "ultravox",
            "target": "x86-cpu",
            "engines": ("onnx",),
            "recipe": "int4",
            "audio": AUDIO,
            "prompt": PROMPT,
            "decoder": DecoderSpec(2, 4, 1, 4, tokenizer.get_vocab_size()),
            "provenance": {"block": "13:16", "wer": {"before": 31.7, "after": 33.1}},
            "created_by": "a test",
            "files": files,
        }
        manifest = BundleManifest(**{**fields, **changes})
        (folder / MANIFEST_NAME).write_text(manifest.dumps())
        return folder

    return write


@pytest.fixture
def tone() -> np.ndarray:
    """Two seconds of a 440 Hz tone at 16 kHz."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)
