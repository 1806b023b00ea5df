"""Every loss is that of the model's own head: some families scale or cap the logits behind the matrix."""

from __future__ import annotations

import pytest
import torch
from decoder_families import CONFIGS
from transformers import AutoModelForCausalLM

from prunella.speech_llm.batches import IGNORE, batch_loss, scored_logits, text_batch

FAMILIES = ("llama", "qwen3", "gemma", "gemma2", "granite", "cohere", "cohere2")


@pytest.fixture(params=FAMILIES)
def decoder(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float32).eval()


@torch.no_grad()
def test_losses_are_the_models_own(decoder):
    rows = [[5, 9, 77, 3, 40, 41, 8], [60, 61, 7]]
    batch = text_batch(decoder, rows)
    expected = 0.0
    for row in rows:
        ids = torch.tensor([row])
        expected += float(decoder(input_ids=ids, labels=ids).loss) * (len(row) - 1)
    loss, count = batch_loss(decoder, batch)
    assert count == sum(len(row) - 1 for row in rows)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_head_runs_on_scored_positions_alone_and_learns(decoder):
    batch = text_batch(decoder, [[5, 9, 77, 3], [60, 61]])
    scored = batch.labels != IGNORE
    rows = []
    handle = decoder.get_output_embeddings().register_forward_hook(
        lambda _module, inputs, _output: rows.append(inputs[0].shape[:-1].numel())
    )
    logits = scored_logits(decoder, batch.inputs_embeds, scored)
    handle.remove()
    assert rows == [4] and logits.shape == (4, 96)
    logits.sum().backward()
    assert decoder.base_model.layers[0].mlp.down_proj.weight.grad.abs().max() > 0
    assert decoder(inputs_embeds=batch.inputs_embeds).logits.shape == (2, 4, 96)  # nothing stays behind
