"""What every engine promises (`device_runtime.engine.Engine`), asked of each: PyTorch, ONNX Runtime, llama.cpp."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.decoding.beam_search import Beams, BeamSearch, Hypothesis
from prunella.device_runtime.decoding.effort import Shortcut, Spelled
from prunella.device_runtime.decoding.greedy import Greedy
from prunella.device_runtime.decoding.strategy import Decoded, Prefilled
from prunella.device_runtime.engines.gguf_engine import GgufEngine
from prunella.device_runtime.engines.onnx_engine import OnnxEngine
from prunella.device_runtime.transcript import DecodeOptions
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


class Told:
    """Letters that say what a test wants."""

    def __init__(self, tokens, entropy=1.0):
        self.read = lambda log_probabilities: Spelled("told", tuple(tokens), entropy)


@pytest.fixture
def decodings(engine, tiny_model):
    """Ways of decoding noise: greedily, with 3 beams, and with letters ahead of either."""
    tokenizer, end = tiny_model.tokenizer.backend_tokenizer, tiny_model.prompt.eos_ids
    options = DecodeOptions(effort="fast", fast_margin=0.0, guards=False, draft=False, beams=3, ctc_weight=0)

    def decode(audio, tokens=None, margin=0.0, beams=False):
        inner = (
            Beams(engine, tokenizer, end, "", options) if beams else Greedy(engine, tokenizer, end, options)
        )
        if tokens is not None:
            inner = Shortcut(engine, Told(tokens), end, replace(options, fast_margin=margin), inner)
        steps = inner.decode(Prefilled(audio, engine.start(audio), np.zeros((1, 2), np.float32), 12))
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value

    return decode


@pytest.mark.parametrize("right", [0, 1, 5])
def test_letters_that_are_wrong_somewhere_change_no_greedy_text(right, engine, noise, decodings):
    audio = engine.encode(noise)
    exact = decodings(audio)
    wrong = (exact.tokens[right] + 1) % 200
    told = decodings(audio, (*exact.tokens[:right], wrong, *exact.tokens[right + 1 : 9]))
    assert told.tokens == exact.tokens
    assert decodings(audio).tokens == exact.tokens  # an utterance leaves nothing behind


def test_letters_that_the_decoder_lets_pass_are_the_answer(engine, noise, decodings):
    audio = engine.encode(noise)
    told = decodings(audio, TOKENS, margin=1_000.0)
    assert (told.tokens, told.text, told.passes) == (TOKENS, "told", 1)


def test_beams_go_on_from_what_was_kept(engines, engine, noise, decodings, tiny_model):
    audio = engine.encode(noise)
    kept = decodings(audio).tokens[:3]
    found = decodings(audio, (*kept, 17, 18), beams=True)
    assert found.tokens[:3] == kept
    # PyTorch, told that these were said, finds the same.
    plain = engines["torch"]
    search = BeamSearch(3, tiny_model.prompt.eos_ids, alive=[Hypothesis(kept)])
    plain.start(plain.encode(noise))
    tokens, parents = search.advance(plain.extend(kept)[-1:])
    for _ in range(12 - len(kept)):
        if tokens:
            tokens, parents = search.advance(plain.step_beams(tokens, parents))
    assert found.tokens == tuple(t for t in search.best.tokens if t not in tiny_model.prompt.eos_ids)[:12]


def test_where_every_letter_is_sure_the_decoder_does_not_run(engine, tiny_model):
    options = DecodeOptions(effort="fast", fast_entropy=0.5)
    end = tiny_model.prompt.eos_ids
    ahead = [Shortcut(engine, Told(TOKENS, entropy), end, options, None) for entropy in (0.4, 0.6)]
    letters = np.zeros((1, 2), np.float32)
    assert ahead[0].sure(letters, 12) == Decoded(TOKENS, "told", "eos", 0)
    assert ahead[1].sure(letters, 12) is None
    assert ahead[0].sure(letters, 4) is None  # more than a text may have
    assert ahead[0].sure(None, 12) is None
