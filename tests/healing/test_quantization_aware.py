"""Training sees the weights that the device will have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from prunella.device_runtime.base.errors import UsageError
from prunella.healing.adapters import TrainableDecoder
from prunella.healing.clips import open_speech
from prunella.healing.heal import heal
from prunella.healing.plan import Augmentation, HealingPlan
from prunella.healing.quantization_aware import rounded
from prunella.quantize.blockwise import quantize_blocks
from prunella.quantize.recipes import RECIPES
from prunella.speech_llm.decoder_view import decoder_view

pytestmark = pytest.mark.slow

PLAN = HealingPlan(
    steps=6, rank=4, precision="fp32", batch_positions=300, micro_positions=150,
    augmentation=Augmentation.none(), rounding=16, rounding_steps=2,
)  # fmt: skip


def test_the_rounding_is_that_of_the_recipes():
    weight = np.random.default_rng(0).normal(size=(24, 64)).astype(np.float32)
    packed, scales = quantize_blocks(weight.T, 4, 32)
    integers = np.stack([packed & 15, packed >> 4], -1).reshape(24, 2, 32).astype(np.float32) - 8
    stored = (integers * scales[..., None]).reshape(24, 64)
    assert np.allclose(rounded(torch.from_numpy(weight), 32).numpy(), stored, atol=1e-6)


def test_a_last_block_that_is_not_full_is_filled_up_with_zeros():
    weight = np.random.default_rng(1).normal(size=(6, 72)).astype(np.float32)
    packed, scales = quantize_blocks(weight.T, 4, 32)
    integers = np.stack([packed & 15, packed >> 4], -1).reshape(6, 3, 32).astype(np.float32) - 8
    stored = (integers * scales[..., None]).reshape(6, 96)[:, :72]
    assert np.allclose(rounded(torch.from_numpy(weight), 32).numpy(), stored, atol=1e-6)


def test_the_head_is_trained_with_as_it_is_stored(make_model):
    """It has no LoRA; tied embeddings are rounded with it, others stay."""
    model = make_model()
    view = decoder_view(model.decoder)
    tied = view.head.weight is view.embeddings.weight
    exact, table = view.head.weight.detach().clone(), view.embeddings.weight.detach().clone()
    decoder = TrainableDecoder(model.decoder, range(len(model.layers)), PLAN, "fp32")
    assert torch.equal(view.head.weight, rounded(exact, RECIPES["int4"].head.block_size))
    assert tied != torch.equal(view.embeddings.weight, table)
    decoder.merge()
    assert torch.equal(decoder_view(model.decoder).head.weight, exact)


def test_a_layer_computes_with_rounded_weights_and_merges_into_exact_ones(make_model):
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    decoder = TrainableDecoder(model.decoder, range(len(model.layers)), PLAN, "fp32")
    tuned = decoder.tuned()
    for module in tuned.values():
        torch.nn.init.normal_(module.lora_B["default"].weight, std=0.05)
    decoder.rounded.refresh()
    for name, module in tuned.items():
        delta = module.get_delta_weight("default").detach()
        whole = module.get_base_layer().weight + delta
        assert torch.allclose(whole, rounded(before[f"{name}.weight"] + delta, 16), atol=1e-6)
        assert not torch.allclose(whole, before[f"{name}.weight"] + delta, atol=1e-3)
    deltas = {name: module.get_delta_weight("default").detach() for name, module in tuned.items()}
    decoder.merge()
    for name, tensor in model.decoder.state_dict().items():
        added = deltas.get(name.removesuffix(".weight"), 0.0)
        assert torch.allclose(tensor, before[name] + added, atol=1e-6), name


def test_a_stopped_run_ends_in_the_same_place(make_model, manifest, tmp_path):
    clips = open_speech([manifest])
    whole = heal(make_model(), PLAN, clips, work=tmp_path / "whole")
    heal(make_model(), replace(PLAN, steps=4), clips, work=tmp_path / "stopped")
    again = heal(make_model(), PLAN, clips, work=tmp_path / "stopped")
    assert (
        again.config.provenance["healing"][-1]["steps"]
        == whole.config.provenance["healing"][-1]["steps"]
        == 6
    )
    assert all(torch.isfinite(tensor).all() for tensor in again.decoder.state_dict().values())
    assert again.config.provenance["healing"][-1]["rounding"] == 16  # by which `export` chooses its blocks


def test_rounding_needs_a_lora():
    with pytest.raises(UsageError, match="--rank"):
        replace(PLAN, rank=0)
