"""A tiny random speech LLM, and speech that it can learn: every word is a tone of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_models import tiny_speech_llm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prunella.speech_llm.config import AudioEncoderConfig, Prompt
from prunella.speech_llm.model import SpeechLLM

WORDS = {"go": 300, "stop": 500, "left": 800, "right": 1_200, "up": 1_800, "down": 2_600}
RATE = 16_000


def make_model(*, layers: int = 3, seed: int = 0) -> SpeechLLM:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{word} {word}" for word in WORDS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    return tiny_speech_llm(
        fast,
        seed=seed,
        layers=layers,
        prompt=Prompt("<|im_start|>", "<|im_end|>", "<|im_end|>"),
        hidden=32,
        encoder=AudioEncoderConfig(24, 1, 2, 48),
        text_style="lower",
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=1,
        pad_token_id=0,
    )


def write_speech(folder: Path, count: int, *, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = rng.choice(list(WORDS), size=int(rng.integers(1, 5)))
        pieces = []
        for word in words:
            time = np.arange(int(0.4 * RATE)) / RATE
            pieces += [0.3 * np.sin(2 * np.pi * WORDS[word] * time), np.zeros(int(0.1 * RATE))]
        samples = np.concatenate(pieces) + 0.003 * rng.standard_normal(len(pieces) // 2 * RATE // 2)
        soundfile.write(folder / f"{number}.wav", samples.astype(np.float32), RATE)
        rows.append(
            {"audio_filepath": f"{number}.wav", "duration": len(samples) / RATE, "text": " ".join(words)}
        )
    manifest = folder / "speech.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.fixture(name="make_model")
def make_model_fixture() -> Callable[..., SpeechLLM]:
    return make_model


@pytest.fixture
def model() -> SpeechLLM:
    return make_model()


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    return write_speech(tmp_path_factory.mktemp("speech"), 24)
