"""PyTorch and ONNX float32 give the same numbers and the same tokens; so do the bound loop and plain run()."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from prunella.device_runtime.base.cores import physical_cores
from prunella.device_runtime.base.errors import BundleError, EngineError
from prunella.device_runtime.bundle import open_bundle
from prunella.device_runtime.engines.onnx_engine import OnnxEngine
from prunella.device_runtime.opening import open_transcriber
from prunella.speech_llm.torch_engine import TorchEngine


def greedy(engine, audio, steps=24):
    """Tokens, and the logits that they were chosen from."""
    logits = [engine.start(audio).copy()]
    tokens = []
    for _ in range(steps):
        tokens.append(int(logits[-1].argmax()))
        logits.append(engine.step(tokens[-1]).copy())
    return tokens, np.stack(logits)


@pytest.fixture
def torch_engine(tiny_model):
    return TorchEngine(tiny_model)


@pytest.fixture
def onnx_engine(float_bundle):
    return OnnxEngine.open(float_bundle, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [400, 1_600, 20_800, 100_001, 29 * 16_000])
def test_audio_encoder_at_any_length(samples, torch_engine, onnx_engine):
    audio = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    expected, found = torch_engine.encode(audio), onnx_engine.encode(audio)
    assert found.shape == expected.shape
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.step("transcribe", family="ultravox")
def test_decoder_logits_and_tokens(torch_engine, onnx_engine, noise):
    audio = torch_engine.encode(noise)
    tokens, logits = greedy(torch_engine, audio)
    assert logits.std() >= 1
    assert len(set(tokens)) > 3
    found_tokens, found_logits = greedy(onnx_engine, audio)
    assert found_tokens == tokens
    np.testing.assert_allclose(found_logits, logits, atol=1e-3)


def test_scores(torch_engine, onnx_engine, noise):
    audio = torch_engine.encode(noise)
    tokens = np.random.default_rng(0).integers(3, 250, 150).tolist()  # more than one chunk
    expected = torch_engine.score(audio, tokens)
    np.testing.assert_allclose(onnx_engine.score(audio, tokens), expected, atol=2e-3)
    np.testing.assert_allclose(onnx_engine.score(audio, tokens[:1]), expected[:1], atol=2e-3)
    assert onnx_engine.score(audio, []).shape == (0,)


def test_bound_loop_equals_plain_run(float_bundle, onnx_engine, noise, tiny_model):
    session = onnxruntime.InferenceSession(
        str(float_bundle.file("onnx/decoder_model_merged.onnx")), providers=["CPUExecutionProvider"]
    )
    embed = onnxruntime.InferenceSession(
        str(float_bundle.file("onnx/embed_tokens.onnx")), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    audio = onnx_engine.encode(noise)

    def embeddings(ids):
        return embed.run(None, {"input_ids": np.array([ids], np.int64)})[0]

    prompt = tiny_model.prompt
    x = np.concatenate([embeddings(prompt.before_ids), audio[None], embeddings(prompt.after_ids)], axis=1)
    cache = {
        value.name: np.zeros((1, 2, 0, 16), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values")
    }
    total, tokens, logits = 0, [], []
    for _ in range(25):
        total += x.shape[1]
        inputs = {
            "inputs_embeds": x,
            "attention_mask": np.ones((1, total), np.int64),
            "num_logits_to_keep": np.array(0, np.int64),
        }
        outputs = dict(zip(names, session.run(None, {**inputs, **cache}), strict=True))
        assert outputs["logits"].shape[1] == x.shape[1]
        logits.append(outputs["logits"][0, -1])
        tokens.append(int(logits[-1].argmax()))
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
        x = embeddings([tokens[-1]])
    found_tokens, found_logits = greedy(onnx_engine, audio)
    assert found_tokens == tokens[:-1]
    np.testing.assert_allclose(found_logits, logits, atol=1e-4)


def test_an_utterance_does_not_see_the_one_before(onnx_engine, noise):
    audio = onnx_engine.encode(noise)
    first = greedy(onnx_engine, audio)
    greedy(onnx_engine, onnx_engine.encode(noise[:9_000] * 3), steps=40)
    again = greedy(onnx_engine, audio)
    assert again[0] == first[0]
    np.testing.assert_array_equal(again[1], first[1])


def test_a_growing_cache_keeps_what_it_holds(float_bundle, noise):
    small, large = OnnxEngine.open(float_bundle, threads=1), OnnxEngine.open(float_bundle, threads=1)
    small.allocate(20)
    audio = large.encode(noise)
    expected, found = greedy(large, audio, steps=60), greedy(small, audio, steps=60)
    assert small.capacity > 20
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_a_full_context_is_said(float_bundle):
    engine = OnnxEngine.open(float_bundle, threads=1)
    audio = np.zeros((2_100, 64), np.float32)
    with pytest.raises(EngineError, match=r"positions, the bundle has 2048: cut the audio"):
        engine.start(audio)
    with pytest.raises(EngineError, match="cut the audio"):
        engine.score(audio[:2_000], [5] * 100)


def test_a_manifest_that_contradicts_the_graph_is_refused(float_bundle):
    from dataclasses import replace

    manifest = float_bundle.manifest
    wrong = replace(manifest, decoder=replace(manifest.decoder, vocab_size=64))
    with pytest.raises(BundleError, match="the manifest says"):
        OnnxEngine.open(replace(float_bundle, manifest=wrong), threads=1)


def test_without_onnxruntime_the_extra_is_named(float_bundle, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"pip install -e .*\[cpu\]"):
        OnnxEngine.open(float_bundle)


def test_physical_cores():
    assert physical_cores() >= 1


@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4"])
def test_every_recipe_transcribes(bundles, recipe, noise):
    bundle = open_bundle(bundles[recipe].path)  # every checksum
    ungated = replace(bundle.manifest.decode, speech_probability=0.0)  # noise is not speech
    transcriber = open_transcriber(bundle.path, threads=1, options=ungated)
    transcript = transcriber.transcribe(noise)
    assert transcript.engine == f"onnx-{recipe}"
    assert transcript.tokens
    assert transcriber.score(noise, "hello")[1] == 6
