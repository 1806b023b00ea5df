"""The view of a decoder says what the decoder itself computes, family by family."""

from __future__ import annotations

import pytest
import torch
from decoder_families import CONFIGS
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
)

from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm.decoder_view import decoder_view

NORMED = ("gemma2", "gemma3", "olmo2")  # what is added to the residual stream is normed before
SCALES = {
    "granite": (0.22, 12.0, 1.0),
    "gemma": (1.0, 1.0, 32**0.5),
    "gemma2": (1.0, 1.0, 32**0.5),
    "gemma3": (1.0, 1.0, 32**0.5),
}
TOKENS = torch.tensor([[5, 9, 77, 3, 40, 41, 8], [60, 61, 7, 30, 31, 90, 95]])


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


@pytest.fixture
def decoder(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.float32).eval()


@torch.no_grad()
def test_logits_are_the_models_own(decoder):
    view = decoder_view(decoder)
    expected = decoder(TOKENS).logits
    hidden = view.run(view.embeddings(TOKENS))
    assert torch.equal(view.logits(hidden), expected)
    assert view.logits(hidden[0, 3]).shape == (view.vocab_size,) == (96,)
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    padded = view.logits(view.run(view.embeddings(TOKENS), mask))
    torch.testing.assert_close(padded, decoder(TOKENS, attention_mask=mask).logits)
    assert torch.equal(decoder(TOKENS).logits, expected)  # nothing stays behind


def test_logits_and_states_carry_gradients(decoder):
    view = decoder_view(decoder)
    view.logits(view.run(view.embeddings(TOKENS))[:, -1]).square().sum().backward()
    assert view.down_projection(0).weight.grad.abs().max() > 0
    assert view.head.weight.grad.abs().max() > 0


@torch.no_grad()
def test_the_residual_stream_is_the_sum_that_the_view_says(decoder, family):
    view = decoder_view(decoder)
    assert len(view) == 4 and view.hidden_size == 32
    layer, added, seen = view.layers[1], [], {}
    handles = [
        view.watch_input(1, lambda x: seen.__setitem__("before", x)),
        view.watch_output(1, lambda x: seen.__setitem__("after", x)),
        view.watch_input(2, lambda x: seen.__setitem__("next", x)),
        view.watch_activations(1, lambda x: seen.__setitem__("activations", x)),
        layer.mlp.register_forward_hook(lambda _module, _args, output: seen.__setitem__("mlp", output)),
    ]
    last = [layer.self_attn, layer.mlp]
    if family in NORMED:
        last = [layer.post_attention_layernorm, layer.post_feedforward_layernorm]
    for module in last:
        handles.append(
            module.register_forward_hook(
                lambda _module, _args, output: added.append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
        )
    view.run(view.embeddings(TOKENS))
    for handle in handles:
        handle.remove()
    assert torch.equal(seen["after"], seen["next"])
    assert view.has_norm_behind_mlp(1) == (family in NORMED)
    torch.testing.assert_close(view.down_projection(1)(seen["activations"]), seen["mlp"])
    torch.testing.assert_close(seen["before"] + view.residual_scale * sum(added), seen["after"])


@torch.no_grad()
def test_scales_are_those_on_the_way_from_the_table_to_the_first_layer(decoder, family):
    view = decoder_view(decoder)
    residual, given, lookup = SCALES.get(family, (1.0, 1.0, 1.0))
    assert (view.residual_scale, view.input_scale, view.lookup_scale) == (residual, given, lookup)
    rows, seen = view.embeddings(TOKENS), []
    torch.testing.assert_close(rows, view.embeddings.weight[TOKENS] * view.lookup_scale)
    assert torch.equal(view.token_table()[TOKENS], rows)
    view.watch_input(0, seen.append)
    view.run(rows)
    torch.testing.assert_close(seen[0], rows * view.input_scale)
    torch.testing.assert_close(seen[0], view.embeddings.weight[TOKENS] * view.embedding_scale)


@torch.no_grad()
def test_a_pass_can_end_before_any_layer(decoder):
    view = decoder_view(decoder)
    embedded, ran = view.embeddings(TOKENS), []
    for layer in range(4):
        view.watch_output(layer, lambda _, layer=layer: ran.append(layer))
    for state in range(5):
        ran.clear()
        view.run_until(state, embedded)
        assert ran == list(range(state))


def test_what_does_not_fit_is_refused():
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel has no plain list of layers: supported are"):
        decoder_view(
            AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=8))
        )
    with pytest.raises(CheckpointError, match="LlamaModel has no plain list"):
        decoder_view(AutoModel.from_config(CONFIGS["llama"]))
    view = decoder_view(AutoModelForCausalLM.from_config(CONFIGS["llama"]))
    view.layers[2].mlp = torch.nn.Identity()
    with pytest.raises(CheckpointError, match="layer 2 has no MLP with a plain down projection"):
        view.down_projection(2)

    class Wrapped(torch.nn.Embedding):
        pass

    view.decoder.set_input_embeddings(Wrapped(96, 32))
    with pytest.raises(CheckpointError, match="embedding layer is a Wrapped, whose factor is not known"):
        _ = view.embedding_scale
