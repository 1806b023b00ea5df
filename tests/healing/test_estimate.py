"""`heal --estimate`: its formulas against what is there, and what the command says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunella.cli import main
from prunella.healing.adapters import TrainableDecoder
from prunella.healing.estimate import activations, decoder_shapes, estimate, shapes_of
from prunella.healing.plan import HealingPlan
from prunella.speech_llm.checkpoint import save_checkpoint

CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
PLAN = HealingPlan(steps=10, rank=8, micro_positions=400)


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2)])
def test_activations_are_what_a_forward_pass_keeps(precision, width):
    decoder = LlamaForCausalLM(CONFIG)
    TrainableDecoder(decoder, range(3), PLAN, precision)
    decoder.set_attn_implementation("eager")
    decoder.train()
    weights = {one.untyped_storage().data_ptr() for one in decoder.parameters()}
    kept, held = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    rows = torch.randn(4, 100, 128, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        decoder.model(inputs_embeds=rows, use_cache=False)
    found = activations(decoder_shapes(CONFIG), PLAN, width, longest=100)
    assert 0.8 * sum(kept.values()) < found < 1.6 * sum(kept.values())


def test_weights_are_counted():
    decoder, found = LlamaForCausalLM(CONFIG), decoder_shapes(CONFIG)
    assert found.decoder == sum(one.numel() for one in decoder.parameters())
    trained = TrainableDecoder(decoder, range(3), PLAN, "fp32")
    loras = sum(one.numel() for name, one in trained.decoder.named_parameters() if "lora_" in name)
    assert loras == PLAN.rank * found.ends


def test_settings_move_what_they_should():
    shapes = decoder_shapes(CONFIG)
    plain = estimate(shapes, PLAN, precision="fp32")
    bf16 = estimate(shapes, PLAN, precision="bf16")
    assert bf16.memory["frozen copies"] == 2 * shapes.decoder
    assert bf16.memory["activations"] < plain.memory["activations"]
    qlora = estimate(shapes, replace(PLAN, base_bits=4), precision="bf16")
    assert qlora.memory["frozen copies"] < bf16.memory["frozen copies"]
    taught = estimate(shapes, PLAN, precision="fp32", teacher=shapes)
    assert taught.work == pytest.approx(1.5 * plain.work) and taught.memory["teacher"] == 4 * shapes.decoder
    saved = estimate(shapes, replace(PLAN, gradient_checkpointing=True), precision="fp32")
    assert saved.bytes < plain.bytes and saved.work == pytest.approx(1.5 * plain.work)


def test_the_command_says_it_and_writes_nothing(make_model, manifest, tmp_path, capsys):
    folder = save_checkpoint(make_model(), tmp_path / "model")
    arguments = ["heal", str(folder), "--speech", str(manifest), "--steps", "100", "--precision", "fp32"]
    assert main([*arguments, "--estimate", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for word in ("memory = ", "hours  = ", "GB: weights", "an epoch", "100 steps"):
        assert word in said
    assert not (tmp_path / "out").exists()
    model = make_model()
    assert shapes_of(folder).around == pytest.approx(
        sum(one.numel() for part in (model.audio_encoder, model.projector) for one in part.parameters()),
        rel=0.01,
    )
