"""Every family's bundle for llama.cpp: the gate, what it says of the audio half, and the same tokens as on ONNX Runtime."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tiny_families import FAMILY_NAMES, write_tiny

from prunella.device_runtime.base.errors import BundleError, CheckpointError, ExportError
from prunella.device_runtime.engines.gguf_engine import GgufEngine
from prunella.device_runtime.engines.mtmd_encoder import MtmdEncoder
from prunella.device_runtime.info import describe
from prunella.device_runtime.opening import open_transcriber
from prunella.evaluation.manifest import read_manifest
from prunella.export import gguf_decoder, gguf_mmproj
from prunella.export.export import export, export_float
from prunella.export.gguf_gate import check_mmproj_file, compare_embeddings
from prunella.export.gguf_mmproj import write_mmproj
from prunella.export.mmproj_layouts import find_layout, stacked_rows
from prunella.quantize.bundle_writer import requantize
from prunella.quantize.gguf_files import read_gguf
from prunella.speech_llm import load
from prunella.speech_llm.torch_engine import TorchEngine
from prunella.targets.profile import TargetProfile

pytestmark = [pytest.mark.native, pytest.mark.slow]

TARGET = TargetProfile(
    name="both",
    description="for tests",
    engines=("gguf", "onnx"),
    recipe="fp32+F32",
    recipes=("fp32+F32", "F16", "F32", "Q8_0", "int8"),
    threads=1,
)
# Family → llama.cpp's layout for its audio half. What has none says why in its bundle.
LAYOUTS = {
    "qwen3_asr": "qwen3a",
    "qwen2_audio": "qwen2a",
    "voxtral": "glma",
    "audioflamingo3": "musicflamingo",
    "glmasr": "",
    "moss_transcribe_diarize": "",
    "qwen2_5_omni_thinker": "",
    "fun_asr_nano": "",
    "phi4_multimodal": "",
    "musicflamingo": "",
    "granite_speech": "granite_speech",
    "granite_speech_plus": "",
}
HEARS = [name for name in FAMILY_NAMES if LAYOUTS[name]]
AUDIO = "<__media__>"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    made = {}

    def model(name):
        if name not in made:
            made[name] = load(write_tiny(name, folder / name, text={"initializer_range": 0.2}))
            torch.manual_seed(1)
            for key, parameter in made[name].named_parameters():
                if (
                    key.endswith(".bias") or "norm" in key
                ):  # fresh ones are zeros and ones, which nobody would miss
                    parameter.data += 0.3 * torch.randn_like(parameter)
        return made[name]

    return model


@pytest.fixture(scope="module")
def bundles(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    made = {}

    def bundle(name):
        if name not in made:
            made[name] = export_float(models(name), TARGET, folder / name, recipe="fp32+F32")
        return made[name]

    return bundle


@pytest.mark.step("GGUF decoder")
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_files_pass_the_gate(name, bundles, models):
    bundle = bundles(name)
    gate = bundle.manifest.provenance["gguf_gate"]
    assert gate["logit_error"] < 1e-3
    assert bundle.manifest.mmproj.projector == LAYOUTS[name]
    files = [file for file in bundle.manifest.files if "mmproj" in file]
    assert files == (["gguf/mmproj-F32.gguf"] if LAYOUTS[name] else [])
    if LAYOUTS[name]:
        assert gate["mmproj_cosine"] > 0.9999
        assert read_gguf(bundle.file(files[0])).keys["clip.projector_type"] == LAYOUTS[name]
    keys = read_gguf(bundle.file("gguf/decoder-F32.gguf")).keys
    ends = [keys.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    assert [end for end in ends if end is not None] == list(models(name).prompt.eos_ids)
    assert "llama.cpp's audio half" in describe(bundle)


@pytest.mark.step("mmproj")
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_llama_cpps_audio_half_is_that_of_the_model_or_says_why_not(name, bundles):
    manifest = bundles(name).manifest
    if not manifest.mmproj.projector:
        assert manifest.mmproj.note
        pytest.xfail(manifest.mmproj.note)
    assert manifest.provenance["gguf_gate"]["mmproj_cosine"] > 0.9999


@pytest.mark.step("GGUF decoder")
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_same_tokens_as_on_onnx_runtime(name, bundles, noise_manifest):
    """Up to where PyTorch itself finds two tokens nearly as good: llama.cpp's cache is in half floats."""
    path = bundles(name).path
    engines = [open_transcriber(path, engine=engine, threads=1) for engine in ("onnx", "gguf")]
    compared = 0
    for utterance in read_manifest(noise_manifest).utterances[:4]:
        samples = utterance.load()
        theirs, ours = (
            one.with_options(guards=False).transcribe(samples).segments[0].tokens for one in engines
        )
        for at, (expected, found) in enumerate(zip(theirs, ours, strict=False)):
            if expected != found:
                assert gap(engines[0].engine, samples, theirs[:at], expected, found) < 0.1
                break
            compared += 1
        else:
            assert len(theirs) == len(ours)
    assert compared > 12


def gap(engine, samples, before, expected, found) -> float:
    """Between two tokens behind `before`, in standard deviations of the logits."""
    row = engine.start(engine.encode(samples))
    for token in before:
        row = engine.step(token)
    return float(row[expected] - row[found]) / float(row.std())


@pytest.mark.parametrize("name", HEARS)
def test_llama_cpps_own_audio_half_opens_and_hears(name, bundles, models, noise_manifest, caplog):
    # Loud: libmtmd cuts off below 6e-8, where the model's features reach 80 dB below the loudest.
    samples = 8 * read_manifest(noise_manifest).utterances[0].load()
    engine = GgufEngine.open(bundles(name), threads=1, audio_half="mtmd")
    found = engine.encode(samples)
    layout = find_layout(models(name))
    warned = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert [text for text in warned if "llama.cpp" in text] == ([layout.note] if layout.note else [])
    expected = TorchEngine(models(name)).encode(samples)
    assert found.shape[1] == expected.shape[1] and len(found) >= len(expected)
    if name in ("qwen3_asr", "voxtral"):
        assert found.shape == expected.shape
    if name == "voxtral":  # the model too hears all 30 s
        np.testing.assert_allclose(found, expected, atol=0.01 * expected.std())
    engine.start(found)


@pytest.mark.parametrize("name", HEARS)
def test_any_program_with_libmtmd_renders_the_same_prompt(name, bundles, models, noise_manifest):
    """The chat template leaves out what libmtmd itself, or the file, puts around the audio."""
    prompt, bundle = models(name).prompt, bundles(name)
    decoder = bundle.file("gguf/decoder-F32.gguf")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(read_gguf(decoder).keys["tokenizer.chat_template"])
    text = template.render(messages=[{"role": "user", "content": AUDIO}])
    samples = read_manifest(noise_manifest).utterances[0].load()
    before, after = libmtmd_tokens(bundle.file("gguf/mmproj-F32.gguf"), decoder, text, samples)
    edges = bundle.manifest.mmproj.prompt_tokens
    first, last = ([prompt.before_ids[-1]], [prompt.after_ids[0]]) if edges else ([], [])
    if name == "audioflamingo3":  # libmtmd begins with the placeholder itself
        before = before[:-1]
    assert [*before, *first] == list(prompt.before_ids)
    assert [*last, *after] == list(prompt.after_ids)


def libmtmd_tokens(mmproj, decoder, text, samples) -> tuple[list[int], list[int]]:
    """Tokens that libmtmd makes of a text with one audio, before and behind it."""
    encoder = MtmdEncoder(mmproj, decoder, threads=1)
    mtmd, context = encoder._mtmd, encoder._context  # noqa: SLF001
    data = np.ascontiguousarray(samples, np.float32)
    bitmap = mtmd.mtmd_bitmap_init_from_audio(len(data), data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
    chunks = mtmd.mtmd_input_chunks_init()
    raw = text.encode()
    given = mtmd.mtmd_input_text(raw, len(raw), False, True)
    sides: list[list[int]] = [[], []]
    try:
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(given), bitmaps, 1) == 0
        heard = False
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_AUDIO:
                heard = True
                continue
            count = ctypes.c_size_t()
            tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
            sides[heard].extend(tokens[: count.value])
    finally:
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
    return sides[0], sides[1]


def test_without_an_audio_half_it_is_said_why(bundles):
    bundle = bundles("glmasr")
    with pytest.raises(BundleError, match=r"no audio half for llama\.cpp: .*rotary.*take --engine gguf"):
        open_transcriber(bundle.path, engine="mtmd")
    smaller = requantize(bundle, "Q8_0", bundle.path.with_name("Q8_0"))
    assert smaller.manifest.mmproj == bundle.manifest.mmproj
    assert not [name for name in smaller.manifest.files if "mmproj" in name]


@pytest.mark.parametrize("name", ["qwen3_asr", "qwen2_audio"])
def test_a_bundle_for_llama_cpp_alone_in_8_bits(name, models, tmp_path, noise_manifest):
    bundle = export(models(name), TARGET, tmp_path / "Q8_0", recipe="Q8_0")
    assert {file for file in bundle.manifest.files if file.startswith("gguf")} == {
        "gguf/decoder-Q8_0.gguf",
        "gguf/mmproj-Q8_0.gguf",
    }
    transcriber = open_transcriber(bundle.path, threads=1)
    samples = read_manifest(noise_manifest).utterances[0].load()
    assert transcriber.transcribe(samples).segments[0].tokens is not None
    assert bundle.manifest.provenance["onnx_drift"]["embeddings"] < 0.2


DROPPED = {
    "voxtral": ("blk.1.attn_out.bias", "mm.a"),  # its post_ln is none there, and asked for when it is loaded
    "granite_speech": ("blk.1.attn_out.bias", "a.proj_linear"),
}


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        (name, dropped)
        for name in HEARS
        for dropped in DROPPED.get(name, ("blk.1.attn_out.bias", "post_ln", "mm.a"))
    ],
)
def test_a_tensor_that_is_missing_or_wrong_fails(name, dropped, models, bundles, tmp_path, monkeypatch):
    original = gguf_mmproj.mmproj_tensors

    def changed(model):
        tensors = dict(original(model))
        keys = [key for key in tensors if dropped in key]
        for key in keys:
            if dropped in ("mm.a", "a.proj_linear"):
                tensors[key] = np.roll(tensors[key], 1, axis=0)
            else:
                del tensors[key]
        assert keys
        return tensors

    model, decoder = models(name), bundles(name).file("gguf/decoder-F32.gguf")
    monkeypatch.setattr(gguf_mmproj, "mmproj_tensors", changed)
    path = write_mmproj(model, tmp_path / "mmproj.gguf")
    with pytest.raises(ExportError, match=r"lacks|differs"):
        check_mmproj_file(model, path)
    # Without a bias of a Conformer's llama.cpp ends its process, which is another one.
    ends = "|crashed" if (name, dropped) == ("granite_speech", "blk.1.attn_out.bias") else ""
    with pytest.raises(ExportError, match=rf"cosine|of their spread{ends}"):
        compare_embeddings(model, path, "F16", decoder)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("qwen3_asr", "n_window_infer", 400, "windows of 800, the model chunks of 100 in windows of 400"),
        ("qwen3_asr", "activation_function", "relu", "gelu everywhere, the model gelu, relu"),
        ("qwen2_audio", "max_source_positions", 750, "needs 1500 positions, the encoder has 750"),
        ("voxtral", "max_source_positions", 1400, "needs 1500 positions, the encoder has 1400"),
    ],
)
def test_what_libmtmd_hard_codes_is_checked(name, field, value, message, models, monkeypatch):
    model = models(name)
    monkeypatch.setattr(model.stock.model.config.audio_config, field, value)
    with pytest.raises(CheckpointError, match=message):
        find_layout(model)


def test_a_model_healed_on_trimmed_audio_hears_no_30_s(models):
    model = models("voxtral")
    audio = dataclasses.replace(
        model.config.geometry.audio, features=dataclasses.replace(model.config.audio.features, multiple=1_280)
    )
    geometry = dataclasses.replace(model.config.geometry, audio=audio)
    trimmed = load(model.stock.folder)
    trimmed.config = dataclasses.replace(model.config, geometry=geometry)
    with pytest.raises(CheckpointError, match="healed on audio of its true length"):
        find_layout(trimmed)


@pytest.mark.parametrize(
    ("width", "factor", "rows"),
    [(384, 8, 188), (1_280, 8, 187), (384, 5, 300), (1_280, 4, 375), (32, 4, 375)],
)
def test_the_vectors_that_llama_cpp_stacks(width, factor, rows):
    """Measured: 384 wide with a stack of 8 ends the process over 188 where 187 were counted."""
    assert stacked_rows(width, factor) == rows


def test_llama_cpps_own_layout_for_voxtral_is_not_what_it_computes(models, bundles, tmp_path, monkeypatch):
    """It averages pairs of frames: 187 tokens where the model has 375, or the end of the process at this width."""
    layout = dataclasses.replace(
        find_layout(models("voxtral")),
        projector_type="voxtral",
        tensors=lambda model: {},
        around=False,
    )
    encoder = layout.encoder | {"layer_norm": "a.post_ln"}
    layout = dataclasses.replace(layout, encoder=encoder)
    for module in (gguf_mmproj, gguf_decoder):
        if hasattr(module, "find_layout"):
            monkeypatch.setattr(module, "find_layout", lambda model: layout)
    monkeypatch.setattr("prunella.export.gguf_gate.find_layout", lambda model: layout)
    path = write_mmproj(models("voxtral"), tmp_path / "mmproj.gguf", kind="F32")
    check_mmproj_file(models("voxtral"), path)
    with pytest.raises(ExportError, match=r"crashed on|libmtmd makes"):
        compare_embeddings(models("voxtral"), path, "F32", bundles("voxtral").file("gguf/decoder-F32.gguf"))
