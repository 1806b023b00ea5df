"""Phi-4-multimodal hears speech by a LoRA adapter in a folder of its own: merged when it is read, and once."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_families import FAMILIES, write_tiny

from prunella.cli import main
from prunella.device_runtime.base.errors import CheckpointError
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune, save_pruned
from prunella.speech_llm import load

FAMILY = "phi4_multimodal"
IDS = torch.tensor([[5, 30, 99, 7]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two adapters, as in transformers' own layout of the model: that of pictures is none of ours."""
    peft = pytest.importorskip("peft")
    out = write_tiny(FAMILY, tmp_path_factory.mktemp("adapter") / FAMILY)
    for seed, name in ((1, "speech-lora"), (2, "vision-lora")):
        stock = FAMILIES[FAMILY].stock.from_pretrained(out)
        targets = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
        adapted = peft.get_peft_model(stock, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        torch.manual_seed(seed)
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.2)
        adapted.save_pretrained(out / name)
    return out


@torch.inference_mode()
def test_it_says_what_transformers_says_with_the_adapter_on(folder, tmp_path):
    stock = FAMILIES[FAMILY].stock.from_pretrained(folder).eval()
    bare = stock(input_ids=IDS).logits
    stock.load_adapter(str(folder / "speech-lora"))
    expected = stock(input_ids=IDS).logits
    assert (expected - bare).abs().max() > 0.1
    model = load(folder)
    torch.testing.assert_close(model.decoder(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
    cut, report = prune(model, (Block(2, 4),), bridge=False)
    save_pruned(cut, report, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("*-lora"))
    again = load(tmp_path / "cut")
    torch.testing.assert_close(again.decoder(input_ids=IDS).logits, cut.decoder(input_ids=IDS).logits)
    again = FAMILIES[FAMILY].stock.from_pretrained(tmp_path / "cut").eval()
    torch.testing.assert_close(again(input_ids=IDS).logits, cut.decoder(input_ids=IDS).logits)


def test_an_adapter_that_does_not_fit_is_refused(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "model")
    config = broken / "speech-lora" / "adapter_config.json"
    body = json.loads(config.read_text())
    config.write_text(json.dumps(body | {"target_modules": ["o_proj"]}))
    with pytest.raises(CheckpointError, match="does not fit its model"):
        load(broken)
    (broken / "speech-lora" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load(broken)


def test_layer_by_layer_it_is_not_merged(folder, noise_manifest, tmp_path, capsys):
    arguments = [
        "prune",
        str(folder),
        "--block",
        "2:4",
        "--no-bridge",
        "--stream",
        "on",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 1
    assert "is merged into the weights in memory" in capsys.readouterr().err
