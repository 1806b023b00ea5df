"""Granite Speech's own LoRA adapter is merged into its weights: what is heard is what the stock class hears with it on."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, sound, stock_rows, tiny_stock, tiny_tokenizer

from prunella.device_runtime.base.errors import CheckpointError
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune, save_pruned
from prunella.speech_llm import load, load_any
from prunella.speech_llm.stock import assembled


def write_adapted(family, folder):
    """As on the Hub: the model, and an adapter of its own beside it, by the names that both have there."""
    stock = tiny_stock(family, rest={"has_lora_adapter": True})
    stock.save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], bias="none")
    config.base_model_name_or_path = "somebody/else"
    config.save_pretrained(folder)
    torch.manual_seed(1)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if "language_model" in name and module.endswith(("q_proj", "v_proj")):
            outputs, inputs = tensor.shape
            tensors[f"base_model.model.{module}.lora_A.weight"] = 0.3 * torch.randn(3, inputs)
            tensors[f"base_model.model.{module}.lora_B.weight"] = 0.3 * torch.randn(outputs, 3)
    assert len(tensors) == 24
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=["granite_speech", "granite_speech_plus"])
def folder(request, tmp_path_factory):
    return write_adapted(request.param, tmp_path_factory.mktemp("adapted") / request.param)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@torch.inference_mode()
def logits_of(stock, model):
    ids = torch.tensor([[5, 30, 4, 4, 4, 99, 7]])
    rows = stock_rows(model, sound(0.2))
    embeds = stock.get_input_embeddings()(ids)
    embeds[0, 2:5] = rows
    return stock(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).logits


def test_it_hears_what_the_stock_class_hears_with_its_adapter_on(folder, model):
    kind = FAMILIES[folder.name].stock
    adapted = kind.from_pretrained(folder, dtype=torch.float32).eval()
    adapted.enable_adapters()
    expected = logits_of(adapted, model)
    found = logits_of(assembled(model), model)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    adapted.disable_adapters()
    assert (logits_of(adapted, model) - expected).abs().max() > 1
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "base_layer" in name]


def test_what_is_saved_needs_no_adapter_and_has_the_hubs_names(folder, model, tmp_path):
    pruned, report = prune(model, (Block(2, 4),), bridge=False)
    save_pruned(pruned, report, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("adapter*"))
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["has_lora_adapter"] is False
    assert set(load_file(tmp_path / "cut" / "model.safetensors")) < set(
        load_file(folder / "model.safetensors")
    )
    stock = FAMILIES[folder.name].stock.from_pretrained(tmp_path / "cut", dtype=torch.float32).eval()
    torch.testing.assert_close(logits_of(stock, pruned), logits_of(assembled(pruned), pruned))
    whole = load_file(folder / "model.safetensors")
    name = next(name for name in whole if name.endswith("layers.0.self_attn.q_proj.weight"))
    assert not torch.equal(load_file(tmp_path / "cut" / "model.safetensors")[name], whole[name])


@pytest.fixture
def copy(folder, tmp_path):
    return write_adapted(folder.name, tmp_path / folder.name)


def test_an_adapter_that_is_not_there_or_does_not_fit_is_an_error(copy):
    tensors = load_file(copy / "adapter_model.safetensors")
    renamed = {name.replace("layers.0.", "layers.9."): tensor for name, tensor in tensors.items()}
    save_file(renamed, copy / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="does not fit its model"):
        load(copy)
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load(copy)
    (copy / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json.* set has_lora_adapter to false"):
        load(copy)


def test_base_weights_that_are_not_there_are_not_made_up(copy):
    there = load_file(copy / "model.safetensors")
    gone = next(
        name for name in there if name.endswith("layers.3.mlp.down_proj.weight") or "input_linear" in name
    )
    save_file(
        {name: there[name] for name in there if name != gone}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="lacks 1 tensors"):
        load(copy)


def test_it_is_read_whole(folder):
    with pytest.raises(CheckpointError, match="--stream off"):
        load_any(folder, stream="on")
