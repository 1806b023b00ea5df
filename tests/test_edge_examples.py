"""`examples/qwen3_asr` and `examples/ultravox_jetson`: every command is run on a tiny checkpoint of the same class, sizes are those of a bundle."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest
from documentation import ROOT, blocks, command_lines
from tiny_families import write_tiny
from tiny_models import write_ultravox

from prunella.cli import main
from prunella.export.export import export
from prunella.quantize.bundle_writer import requantize
from prunella.speech_llm import load

EXAMPLES = ROOT / "examples"
# Rows of 256, so that llama.cpp's own types fit, and weights that bear 4 bits.
TEXT = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 9, "initializer_range": 0.05}
MANIFESTS = ("CALIBRATION.jsonl", "TRAIN.jsonl", "DEV.jsonl")
pytestmark = [pytest.mark.slow, pytest.mark.native]


@pytest.fixture
def desk(noise_manifest, tmp_path, monkeypatch) -> Path:
    """A folder with the examples and the three manifests."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    rows = [json.loads(line) for line in noise_manifest.read_text().splitlines()][:4]
    for row in rows:
        row["audio_filepath"] = str(noise_manifest.parent / row["audio_filepath"])
    for name in MANIFESTS:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(page: Path, model: str, capfd) -> list[str]:
    """Run every command of a page with the folder `tiny` in place of the model; the verbs that ran."""
    ran = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language != "sh" or block.reason:
            continue
        for line in command_lines(block.text):
            program, *words = shlex.split(line)
            if program == "python":
                assert (ROOT / words[0]).is_file()
                continue
            words = ["tiny" if word == model else word for word in words]
            words = ["0.02" if word == "240" else word for word in words]  # minutes of healing
            code = main(words)
            assert code == 0, f"{line}: {capfd.readouterr().err}"
            ran.append(words[0])
    return ran


def test_qwen3_asr_from_the_hub_to_two_boards(desk, capfd):
    write_tiny("qwen3_asr", desk / "tiny", text=TEXT, audio={"output_dim": 256})
    ran = run_page(EXAMPLES / "qwen3_asr" / "README.md", "Qwen/Qwen3-ASR-0.6B-hf", capfd)
    steps = ["export", "verify", "transcribe"]
    assert ran == ["analyze", "prune", "heal", *steps, *steps, "build"]
    body = json.loads((desk / "out" / "qwen3-asr" / "healed" / "config.json").read_text())
    assert body["architectures"] == ["Qwen3ASRForConditionalGeneration"]
    assert body["text_config"]["num_hidden_layers"] == 2
    assert "pruned" in (desk / "out" / "qwen3-asr" / "build" / "report.md").read_text()


def test_ultravox_from_the_hub_to_a_jetson(desk, capfd):
    write_ultravox(desk / "tiny", layers=6)
    ran = run_page(EXAMPLES / "ultravox_jetson" / "README.md", "fixie-ai/ultravox-v0_5-llama-3_2-1b", capfd)
    assert ran == ["analyze", "prune", "heal", "export", "verify", "transcribe"]


@pytest.fixture(scope="module")
def sizes():
    spec = importlib.util.spec_from_file_location("qwen3_asr_sizes", EXAMPLES / "qwen3_asr" / "sizes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_formula_is_within_two_percent_of_a_bundle(sizes, tmp_path):
    text = {"hidden_size": 256, "intermediate_size": 768, "head_dim": 64, "num_hidden_layers": 4}
    audio = {"d_model": 128, "encoder_ffn_dim": 512, "encoder_layers": 3, "encoder_attention_heads": 4}
    folder = write_tiny(
        "qwen3_asr",
        tmp_path / "model",
        text={**text, "vocab_size": 6_000, "initializer_range": 0.05},
        audio={**audio, "downsample_hidden_size": 32, "output_dim": 256},
    )
    model = load(folder)
    of = sizes.shapes(json.loads((folder / "config.json").read_text()))
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert of.decoder + of.encoder + of.norms == pytest.approx(weights, rel=1e-3)
    whole = export(model, "x86-cpu", tmp_path / "fp32", recipe="fp32")
    for recipe in sizes.RECIPES:
        bundle = whole if recipe == "fp32" else requantize(whole, recipe, tmp_path / recipe)
        graphs = sum(file.stat().st_size for file in (bundle.path / "onnx").iterdir())
        assert sizes.bundle_bytes(of, recipe) == pytest.approx(graphs, rel=0.02), recipe


def test_the_script_prints_its_formulas(sizes, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sizes.py", "--layers", "28", "18", "--hours", "10"])
    assert sizes.main() == 0
    out = capsys.readouterr().out
    assert "healing  = tokens x (6 x weights kept (LoRA: 4)" in out and "MFU 0.3" in out
    full, kept = sizes.shapes(sizes.CONFIG), sizes.shapes(sizes.CONFIG, 18)
    assert full.layers == 28 and kept.decoder < full.decoder and kept.encoder == full.encoder
    tokens = 3_600 * (13 + 4 + 1.5)
    flops = tokens * 6 * full.decoder + 2 * 3_600 * 13 * full.encoder
    assert sizes.healing_flops(full, full, 1.0, lora=True) == pytest.approx(flops)
