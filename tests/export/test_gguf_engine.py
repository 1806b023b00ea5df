"""A bundle for llama.cpp: the same numbers as PyTorch, real speech by our runtime and by stock libmtmd alone."""

from __future__ import annotations

import copy
import dataclasses
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from prunella.device_runtime.base.errors import BundleError, EngineError, UsageError
from prunella.device_runtime.base.install_lines import install_line
from prunella.device_runtime.decoding.greedy import GreedyDecoder
from prunella.device_runtime.engines.gguf_engine import GgufEngine
from prunella.device_runtime.engines.llama_decoder import has_amx
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio
from prunella.evaluation.manifest import read_manifest
from prunella.export.export import default_recipe, export, export_float
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.quantize.bundle_writer import requantize
from prunella.quantize.gguf_files import read_gguf
from prunella.quantize.gguf_recipes import GGUF_RECIPES
from prunella.speech_llm.ctc_head import ENGLISH
from prunella.speech_llm.torch_engine import TorchEngine, model_transcriber
from prunella.targets.profile import TargetProfile, load_target

pytestmark = pytest.mark.native

EVALUATION = Path(__file__).parents[2] / "examples" / "clips" / "evaluation.jsonl"
TARGET = TargetProfile(
    name="llama-cpp",
    description="for tests",
    engines=("gguf",),
    recipe="Q4_K_M",
    recipes=("F32", *GGUF_RECIPES),
    threads=1,
)
BOTH = dataclasses.replace(
    TARGET, engines=("gguf", "onnx"), recipes=("fp32+F32", "int8+Q8_0", "int8", "Q8_0")
)


@pytest.fixture(scope="module")
def exact_bundle(tiny_model, tmp_path_factory):
    return export_float(tiny_model, TARGET, tmp_path_factory.mktemp("exact") / "F32", recipe="F32")


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu amx_tile sse", True), ("fpu avx2", False), (None, False)]
)
def test_amx_is_known_by_the_flags_that_linux_shows(flags, expected, monkeypatch):
    def read(*_args, **_options):
        if flags is None:
            raise FileNotFoundError
        return f"flags: {flags}"

    monkeypatch.setattr(Path, "read_text", read)
    assert has_amx() is expected


@pytest.fixture(scope="module")
def engine(exact_bundle):
    return GgufEngine.open(exact_bundle)


@pytest.fixture(scope="module")
def reference_gguf(reference, tmp_path_factory):
    return export_float(reference, TARGET, tmp_path_factory.mktemp("gguf") / "F16")


@pytest.mark.step("GGUF decoder", family="ultravox")
def test_what_is_in_a_bundle(exact_bundle, tiny_model):
    assert sorted(exact_bundle.manifest.files) == [
        "gguf/decoder-F32.gguf",
        "gguf/mmproj-F32.gguf",
        "onnx/audio_encoder.onnx",
        "onnx/audio_encoder.onnx_data",
        "tokenizer.json",
    ]
    assert exact_bundle.manifest.engines == ("gguf",)
    assert exact_bundle.manifest.provenance["gguf_gate"]["logit_error"] < 1e-3


@pytest.mark.step("GGUF decoder", family="ultravox")
def test_the_same_logits_as_pytorch(engine, tiny_model, noise):
    torch_engine = TorchEngine(tiny_model)
    for audio in (
        torch_engine.encode(noise),
        torch_engine.encode(noise[:8_000]),
    ):  # the second finds a used cache
        expected, found = torch_engine.start(audio).copy(), engine.start(audio).copy()
        assert expected.std() >= 1
        for _ in range(12):
            # The engine's cache is in half floats.
            np.testing.assert_allclose(found, expected, atol=0.03 * expected.std())
            assert found.argmax() == expected.argmax()
            token = int(expected.argmax())
            expected, found = torch_engine.step(token).copy(), engine.step(token).copy()


@pytest.mark.step("mmproj", family="ultravox")
def test_the_same_audio_as_pytorch(engine, tiny_model, noise):
    np.testing.assert_allclose(engine.encode(noise), TorchEngine(tiny_model).encode(noise), atol=1e-3)


def test_extend_and_rewind(engine, noise):
    audio = engine.encode(noise)
    engine.start(audio)
    rows = [engine.step(token).copy() for token in (10, 20, 30, 40)]
    engine.start(audio)
    together = engine.extend([10, 20, 99, 98]).copy()
    np.testing.assert_allclose(together[:2], rows[:2], atol=0.05)
    engine.rewind(2)
    np.testing.assert_allclose(engine.extend([30, 40]), rows[2:], atol=0.05)
    engine.rewind(0)
    with pytest.raises(EngineError, match="4 were appended"):
        engine.rewind(5)
    assert engine.extend([]).shape == (0, 320)


def test_scores_and_embeddings(engine, tiny_model, noise):
    torch_engine = TorchEngine(tiny_model)
    audio = torch_engine.encode(noise)
    tokens = np.random.default_rng(0).integers(3, 250, 100).tolist()  # more than one chunk
    np.testing.assert_allclose(engine.score(audio, tokens), torch_engine.score(audio, tokens), atol=0.1)
    table = tiny_model.decoder.get_input_embeddings().weight.numpy()
    np.testing.assert_array_equal(engine.token_embeddings([7, 3]), table[[7, 3]])


def test_without_the_embedding_table_the_prompt_goes_in_as_tokens(exact_bundle, engine, noise, monkeypatch):
    module = "prunella.device_runtime.engines.gguf_engine.open_token_embeddings"
    monkeypatch.setattr(module, lambda *given: None)
    plain = GgufEngine.open(exact_bundle)
    audio = engine.encode(noise)
    np.testing.assert_allclose(plain.start(audio), engine.start(audio), atol=0.05)
    assert plain.token_embeddings([1]) is None


def test_without_onnxruntime_libmtmd_stands_in_and_it_is_said(exact_bundle, noise, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = GgufEngine.open(exact_bundle)
    assert found.name == "mtmd-F32"
    assert install_line("cpu") in caplog.text
    audio = found.encode(noise)
    assert audio.shape == (300, 64)  # 30 s, whatever was said
    assert np.isfinite(found.start(audio)).all()


def test_too_much_text_is_an_error(engine, noise):
    engine.start(engine.encode(noise))
    with pytest.raises(EngineError, match="cut the audio"):
        engine.extend([5] * 5_000)
    with pytest.raises(EngineError, match="token 320 is not"):
        engine.step(320)
    engine.start(engine.encode(noise))  # and it goes on


@pytest.mark.parametrize("recipe", ["Q8_0", "Q4_0", "q6_k"])
def test_a_float_bundle_is_quantised_without_its_model(recipe, exact_bundle, tmp_path, noise):
    bundle = requantize(exact_bundle, recipe, tmp_path / "quantised")
    name = recipe.upper()
    facts = bundle.manifest.provenance["gguf"]
    kinds = [
        tensor.kind.name for tensor in read_gguf(bundle.file(f"gguf/decoder-{name}.gguf")).tensors.values()
    ]
    assert bundle.manifest.recipe == name
    assert facts["types"] == {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    # Rows of 64 and 160: a K-quant is impossible, whatever it is asked for.
    assert facts["fallbacks"] == (facts["quantized"] if name == "Q6_K" else 0 if name == "Q8_0" else 1)
    assert 4.5 < facts["bits_per_weight"] < 16
    found = GgufEngine.open(bundle)
    assert np.isfinite(found.start(found.encode(noise))).all()


def test_llama_cpp_counts_the_same_fallbacks(exact_bundle, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, logger="prunella.llama_cpp"):
        bundle = requantize(exact_bundle, "Q4_K_M", tmp_path / "quantised")
    (said,) = [line for line in caplog.messages if "required fallback" in line]
    # llama.cpp does not count the tied head, which it stores in 8 bits instead of 6 for the same reason.
    assert f" {bundle.manifest.provenance['gguf']['fallbacks'] - 1} of " in said


def test_a_bundle_for_both_engines(tiny_model, tmp_path, noise):
    bundle = export(tiny_model, BOTH, tmp_path / "both", recipe="int8+Q8_0")
    assert bundle.manifest.engines == ("gguf", "onnx")
    names = {open_transcriber(bundle.path, engine=name).engine.name for name in (None, "onnx", "mtmd")}
    assert names == {"gguf-Q8_0", "onnx-int8+Q8_0", "mtmd-Q8_0"}
    with pytest.raises(UsageError, match="does not take the recipe 'Q4_0'"):
        export(tiny_model, BOTH, tmp_path / "none", recipe="Q4_0")
    with pytest.raises(BundleError, match="cannot be quantised again"):
        requantize(bundle, "Q4_0", tmp_path / "none")


def test_bundles_of_one_engine_say_so(exact_bundle, float_bundle, tmp_path):
    with pytest.raises(EngineError, match="has no engine onnx"):
        open_transcriber(exact_bundle.path, engine="onnx")
    with pytest.raises(EngineError, match="that uses gguf"):
        open_transcriber(float_bundle.path, engine="mtmd")
    with pytest.raises(BundleError, match="has no gguf files"):
        requantize(float_bundle, "Q4_0", tmp_path / "none")
    with pytest.raises(UsageError, match="did you mean 'Q4_K_M'"):
        find_bundle_recipe("Q4_K_S")
    with pytest.raises(UsageError, match="two recipes for gguf"):
        find_bundle_recipe("Q4_0+Q8_0")


def test_the_default_follows_the_widths(reference, tiny_model):
    assert default_recipe(reference.decoder.config, TARGET) == "Q4_0"
    text = reference.decoder.config
    wide = dataclasses.replace(TARGET, recipes=("Q4_K_M",))
    assert text.hidden_size % 256
    assert default_recipe(reference.decoder.config, wide) == "Q4_K_M"
    assert default_recipe(tiny_model.decoder.config, load_target("x86-cpu")) == load_target("x86-cpu").recipe


NEAR_TIE = 0.1  # of logits with a standard deviation of 4: weights rounded to 16 bits change gaps by a few hundredths


def test_identical_transcripts_of_every_clip(reference_gguf, reference_float_bundle):
    fast = open_transcriber(reference_gguf.path, threads=1)
    onnx = open_transcriber(reference_float_bundle, threads=1)
    assert fast.engine.name == "gguf-F16"
    clips = read_manifest(EVALUATION).utterances
    assert len(clips) >= 11
    differing = []
    for clip in clips:
        samples = load_audio(clip.audio)
        ours, theirs = onnx.transcribe(samples), fast.transcribe(samples)
        if ours.text != theirs.text:
            differing.append(clip.id)
            assert _gap(onnx, samples, ours.tokens, theirs.tokens) < NEAR_TIE, (ours.text, theirs.text)
    assert len(differing) <= 1, differing


def _gap(transcriber, samples, tokens, others) -> float:
    """How much likelier the first token is in which two transcripts differ: the gap of their logits."""
    ends = transcriber.prompt.eos_ids[:1]
    tokens, others = (*tokens, *ends), (*others, *ends)
    same = next(i for i, pair in enumerate(zip(tokens, others, strict=False)) if len(set(pair)) > 1)
    logits = transcriber.engine.start(transcriber.engine.encode(samples))
    for token in tokens[:same]:
        logits = transcriber.engine.step(token)
    return float(logits[tokens[same]] - logits[others[same]])


def test_our_loop_costs_next_to_nothing(reference_gguf):
    """Tokens a second of our greedy loop against `llama_decode` alone over the same tokens, on the same context."""
    import llama_cpp

    engine = GgufEngine.open(reference_gguf, threads=1)
    clip = min(read_manifest(EVALUATION).utterances, key=lambda row: row.duration)
    audio = engine.encode(load_audio(clip.audio))
    context = engine.decoder.context
    ours, bare = [], []
    for _ in range(5):
        logits = engine.start(audio)
        began = time.process_time()  # of one thread, so that other processes on the machine do not count
        tokens = list(GreedyDecoder(engine, logits).tokens(30))
        ours.append(time.process_time() - began)

        engine.start(audio)
        began = time.process_time()
        for token in tokens[:-1]:
            one = (llama_cpp.llama_token * 1)(token)
            assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(one, 1)) == 0
        bare.append(time.process_time() - began)
        engine.decoder.position += len(tokens) - 1  # what the bare loop appended
    # The fastest of each: what others do to the caches can only add.
    assert min(bare) / min(ours) >= 0.95


def test_stock_libmtmd_transcribes_the_two_files(reference_gguf):
    """What any program with libmtmd does: the files, the bundle's prompt, greedy tokens. Nothing of prunella runs."""
    from llama_cpp import mtmd_cpp as mtmd

    clip = min(read_manifest(EVALUATION).utterances, key=lambda row: row.duration)
    prompt = reference_gguf.manifest.prompt
    script = STOCK.format(
        decoder=str(reference_gguf.file("gguf/decoder-F16.gguf")),
        mmproj=str(reference_gguf.file("gguf/mmproj-F16.gguf")),
        audio=str(clip.audio),
        prompt=prompt.before_audio + mtmd.mtmd_default_marker().decode() + prompt.after_audio,
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    text = done.stdout.strip()
    assert len(text.split()) >= 2
    assert (
        text
        == open_transcriber(reference_gguf.path, engine="mtmd", threads=1)
        .transcribe(load_audio(clip.audio))
        .text
    )


STOCK = """
import ctypes
import llama_cpp as llama
from llama_cpp import mtmd_cpp as mtmd
model = llama.llama_model_load_from_file({decoder!r}.encode(), llama.llama_model_default_params())
settings = llama.llama_context_default_params()
settings.n_ctx, settings.n_batch, settings.n_threads, settings.n_threads_batch = 2048, 2048, 1, 1
context = llama.llama_init_from_model(model, settings)
options = mtmd.mtmd_context_params_default()
options.n_threads = 1
audio = mtmd.mtmd_init_from_file({mmproj!r}.encode(), model, options)
bitmap = mtmd.mtmd_helper_bitmap_init_from_file(audio, {audio!r}.encode(), False)
chunks = mtmd.mtmd_input_chunks_init()
prompt = {prompt!r}.encode()
text = mtmd.mtmd_input_text(prompt, len(prompt), True, True)
assert mtmd.mtmd_tokenize(audio, chunks, ctypes.byref(text), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1) == 0
past = llama.llama_pos(0)
assert mtmd.mtmd_helper_eval_chunks(audio, context, chunks, 0, 0, 2048, True, ctypes.byref(past)) == 0
vocabulary = llama.llama_model_get_vocab(model)
sampler = llama.llama_sampler_init_greedy()
said = b""
for _ in range(64):
    token = llama.llama_sampler_sample(sampler, context, -1)
    if llama.llama_vocab_is_eog(vocabulary, token):
        break
    piece = ctypes.create_string_buffer(64)
    length = llama.llama_token_to_piece(vocabulary, token, piece, 64, 0, False)
    said += piece.raw[:length]
    batch = llama.llama_batch_get_one((llama.llama_token * 1)(token), 1)
    assert llama.llama_decode(context, batch) == 0
print(said.decode())
"""


def test_branches_are_what_each_transcript_is_alone(engine, noise, branching):
    audio = engine.encode(noise)
    for _ in range(2):  # an utterance leaves nothing behind
        before = engine.start(audio).copy()
        texts, found = [()], {}
        for tokens, parents in branching:
            rows = engine.step_beams(tokens, parents).copy()
            texts = [(*texts[parent], token) for token, parent in zip(tokens, parents, strict=True)]
            found |= dict(zip(texts, rows, strict=True))
        assert len(found) == 13
        for text, row in found.items():
            np.testing.assert_array_equal(engine.start(audio), before)
            np.testing.assert_allclose(row, engine.extend(text)[-1], atol=0.02)


def test_greedy_goes_on_from_the_text_that_branched(engine, noise):
    audio = engine.encode(noise)
    engine.start(audio)
    engine.step(5)
    expected = engine.step(6).copy()
    engine.start(audio)
    engine.step(5)
    engine.step_beams([8, 9], [0, 0])
    np.testing.assert_allclose(engine.step(6), expected, atol=0.02)


def test_more_branches_than_there_is_room_for_are_refused_and_forgotten(engine, noise):
    audio = engine.encode(noise)
    before = engine.start(audio).copy()
    with pytest.raises(EngineError, match="16 transcripts at most, not 17"):
        engine.step_beams(range(17), [0] * 17)
    tokens, parents = list(range(5, 21)), [0] * 16
    with pytest.raises(EngineError, match="fewer --beams"):
        for _ in range(2_000):
            engine.step_beams(tokens, parents)
            parents = list(range(16))
    np.testing.assert_allclose(engine.start(audio), before, atol=0.02)


def test_more_beams_than_there_are_branches_are_refused_before_any_audio_is_heard(exact_bundle):
    transcriber = open_transcriber(exact_bundle.path)
    assert transcriber.with_options(beams=16).options.beams == 16
    with pytest.raises(UsageError, match="17 beams are not possible: give 1 to 16"):
        transcriber.with_options(beams=17)


def test_letters_are_weighed_where_our_encoder_hears_them(tiny_model, tmp_path, noise):
    model = copy.deepcopy(tiny_model)
    torch.manual_seed(0)
    for parameter in model.add_ctc_head(ENGLISH).eval().requires_grad_(False).parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    bundle = export_float(model, TARGET, tmp_path / "lettered", recipe="F32").path
    found = {}
    for name in ("pytorch", "gguf", "mtmd"):
        transcriber = (
            model_transcriber(model)
            if name == "pytorch"
            else open_transcriber(bundle, engine=name, threads=1)
        )
        transcriber = transcriber.with_options(beams=0, guards=False)
        found[name] = (transcriber.options.beams, transcriber.transcribe(noise).tokens)
    assert found["gguf"] == found["pytorch"]
    assert found["gguf"][0] == 4
    assert found["gguf"][1]
    assert found["mtmd"][0] == 1
