"""Several transcripts in one pass: each row is what the transcript alone would give, in PyTorch and in ONNX."""

import numpy as np
import pytest

from prunella.device_runtime.engines.onnx_engine import OnnxEngine
from prunella.device_runtime.opening import open_transcriber
from prunella.speech_llm.torch_engine import TorchEngine

pytestmark = pytest.mark.slow


def alone(engine, audio, tokens):
    row = engine.start(audio)
    for token in tokens:
        row = engine.step(token)
    return row.copy()


@pytest.mark.parametrize("kind", ["torch", "fp32", "int4"])
def test_rows_are_those_of_each_transcript_alone(kind, tiny_model, bundles, noise, branching) -> None:
    engine = TorchEngine(tiny_model) if kind == "torch" else OnnxEngine.open(bundles[kind], threads=1)
    audio = engine.encode(noise)
    for _ in range(2):  # an utterance leaves nothing behind
        engine.start(audio)
        texts = [()]
        for tokens, parents in branching:
            rows = engine.step_beams(tokens, parents).copy()
            texts = [(*texts[parent], token) for token, parent in zip(tokens, parents, strict=True)]
            found = dict(zip(texts, rows, strict=True))
        for text, row in found.items():
            # int4 rounds activations: over several rows the last bit may fall otherwise.
            np.testing.assert_allclose(row, alone(engine, audio, text), atol=0.3 if kind == "int4" else 2e-4)


def test_beams_of_a_long_text_find_room(float_bundle, tiny_model, noise) -> None:
    engine, plain = OnnxEngine.open(float_bundle, threads=1), TorchEngine(tiny_model)
    audio = engine.encode(noise)
    engine.start(audio), plain.start(audio)
    parents = [0, 0]
    for place in range(500):
        tokens = [3 + place % 200, 4 + place % 190]
        found, expected = engine.step_beams(tokens, parents), plain.step_beams(tokens, parents)
        parents = [1, 0] if place % 7 == 0 else [0, 1]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_search_can_be_stopped_between_two_passes(float_bundle, noise) -> None:
    transcriber = open_transcriber(float_bundle.path).with_options(beams=3, guards=False)
    steps = transcriber.stream(noise)
    assert [next(steps) for _ in range(3)] == ["", "", ""]
    steps.close()
    whole = open_transcriber(float_bundle.path).with_options(transcriber.options)
    assert transcriber.transcribe(noise).tokens == whole.transcribe(noise).tokens != ()
