"""What every engine promises (`device_runtime.engine.Engine`), asked of each: PyTorch, ONNX Runtime, llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.engines.gguf_engine import GgufEngine
from prunella.device_runtime.engines.onnx_engine import OnnxEngine
from prunella.export.export import export_float
from prunella.speech_llm.torch_engine import TorchEngine
from prunella.targets.profile import TargetProfile

pytestmark = [pytest.mark.slow, pytest.mark.native]

TOKENS = (5, 9, 7, 30, 11)
GGUF = TargetProfile("llama-cpp", "for tests", engines=("gguf",), recipe="F32", recipes=("F32",), threads=1)


@pytest.fixture(scope="module")
def engines(tiny_model, float_bundle, tmp_path_factory):
    gguf = export_float(tiny_model, GGUF, tmp_path_factory.mktemp("contract") / "F32", recipe="F32")
    return {
        "torch": TorchEngine(tiny_model),
        "onnx": OnnxEngine.open(float_bundle, threads=1),
        "gguf": GgufEngine.open(gguf, threads=1),
    }


@pytest.fixture(params=["torch", "onnx", "gguf"])
def engine(request, engines):
    return engines[request.param]


@pytest.fixture(params=["onnx", "gguf"])
def device_engine(request, engines):
    return engines[request.param]


def steps(engine, audio):
    return [engine.start(audio).copy(), *(engine.step(token).copy() for token in TOKENS)]


def test_an_utterance_leaves_nothing_behind(engine, noise):
    audio = engine.encode(noise)
    first = steps(engine, audio)
    steps(engine, audio[: len(audio) // 2])
    np.testing.assert_allclose(steps(engine, audio), first, atol=1e-4)


def test_several_tokens_at_once_are_as_one_by_one(engine, noise):
    audio = engine.encode(noise)
    alone = steps(engine, audio)
    engine.start(audio)
    np.testing.assert_allclose(engine.extend(TOKENS), alone[1:], atol=2e-4)
    engine.start(audio)
    assert engine.extend(()).shape == (0, len(alone[0]))
    np.testing.assert_allclose(engine.step(TOKENS[0]), alone[1], atol=2e-4)


@pytest.mark.parametrize("count", range(len(TOKENS) + 1))
def test_what_is_forgotten_was_never_said(engine, noise, count):
    audio = engine.encode(noise)
    alone = steps(engine, audio)
    engine.rewind(count)
    kept = len(TOKENS) - count
    for token, expected in zip(TOKENS[kept:], alone[kept + 1 :], strict=True):
        np.testing.assert_allclose(engine.step(token), expected, atol=2e-4)


def test_no_more_is_forgotten_than_was_said(engine, noise):
    audio = engine.encode(noise)
    alone = steps(engine, audio)
    engine.start(audio)
    engine.extend(TOKENS[:2])
    for count in (3, 500, -1):
        with pytest.raises(EngineError, match=f"cannot forget {count} tokens: 2 were appended"):
            engine.rewind(count)
    np.testing.assert_allclose(engine.step(TOKENS[2]), alone[3], atol=2e-4)  # nothing was lost by asking


def test_a_transcript_is_scored_as_it_would_be_said(engine, noise):
    audio = engine.encode(noise)
    logits = np.array(steps(engine, audio)[:-1], np.float64)
    likely = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = engine.score(audio, list(TOKENS))
    np.testing.assert_allclose(found, -likely[np.arange(len(TOKENS)), TOKENS], atol=5e-4)


def test_a_full_context_and_a_token_that_is_none_are_errors_of_the_engine(device_engine, noise):
    audio = device_engine.encode(noise)
    alone = steps(device_engine, audio)
    with pytest.raises(EngineError):
        device_engine.extend([5] * 5_000)
    device_engine.start(audio)
    with pytest.raises(EngineError):
        device_engine.step(10**6)
    np.testing.assert_allclose(steps(device_engine, audio), alone, atol=1e-4)
