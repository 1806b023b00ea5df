"""Several cuts of one model: each is remembered, in the numbering before the first."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_level_tokenizer, tiny_speech_llm

from prunella.building.build import healed_blocks
from prunella.device_runtime.base.errors import UsageError
from prunella.evaluation.manifest import read_manifest
from prunella.healing.adapters import lora_layers
from prunella.pruning.blocks import Block, blocks_of
from prunella.pruning.calibration import speech_calibration
from prunella.pruning.history import blocks_between, pruned_blocks
from prunella.pruning.prune import prune, save_pruned
from prunella.speech_llm.checkpoint import load_checkpoint, save_checkpoint
from prunella.speech_llm.config import Prompt


@pytest.fixture(scope="module")
def model():
    """Eight layers."""
    return tiny_speech_llm(
        byte_level_tokenizer(),
        seed=1,
        layers=8,
        prompt=Prompt("user: ", " say it: ", "<|im_end|>"),
        hidden=32,
        intermediate_size=32,
    )


def places(smaller, larger):
    """Which layers of `larger` are left in `smaller`: they share their weights."""
    one, other = (
        [layer.mlp.down_proj.weight.data_ptr() for layer in model.layers] for model in (smaller, larger)
    )
    return [other.index(pointer) for pointer in one]


@given(st.lists(st.sets(st.integers(0, 7), min_size=1, max_size=3), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_the_layers_that_are_left_are_those_that_no_cut_names(model, cuts):
    chain = [model]
    for layers in cuts:
        there = {layer for layer in layers if layer < len(chain[-1].layers)}
        if 0 < len(there) < len(chain[-1].layers):
            chain.append(prune(chain[-1], blocks_of(there))[0])
    last = chain[-1]
    assert len(last.config.provenance.get("pruning", [])) == len(chain) - 1
    for number, earlier in enumerate(chain):
        gone = {layer for block in blocks_between(earlier, last) for layer in block.layers}
        assert [layer for layer in range(len(earlier.layers)) if layer not in gone] == places(last, earlier)
        if number:
            kept = {layer for block in pruned_blocks(earlier) for layer in block.layers}
            assert kept == set(range(8)) - set(places(earlier, model))


def test_a_second_cut_keeps_the_first_ones_provenance(model, tmp_path):
    first, _ = prune(model, [Block(2, 4)])
    second, report = prune(first, [Block(1, 3)])
    assert report.blocks == ("1:3",)  # as it was asked for
    save_pruned(second, report, tmp_path / "second")
    again = load_checkpoint(tmp_path / "second")
    cuts = again.config.provenance["pruning"]
    assert [cut["blocks"] for cut in cuts] == [["2:4"], ["1:2", "4:5"]]
    assert [(cut["layers_before"], cut["layers_after"]) for cut in cuts] == [(8, 6), (6, 4)]
    assert pruned_blocks(again) == (Block(1, 5),)
    assert lora_layers("receiving", again) == [1]
    for name, given_model, expected in (("full", model, ("1:5",)), ("first", first, ("1:3",))):
        folder = str(save_checkpoint(given_model, tmp_path / name))
        assert healed_blocks(folder, str(tmp_path / "second")) == expected
    with pytest.raises(UsageError, match="was not cut from"):
        healed_blocks(str(tmp_path / "second"), str(tmp_path / "first"))


@pytest.mark.slow
def test_bridges_are_named_in_the_first_numbering_too(small_speech_llm, noise_manifest):
    calibration = speech_calibration(small_speech_llm, read_manifest(noise_manifest))
    first, _ = prune(small_speech_llm, [Block(2, 3)], calibration=calibration)
    second, report = prune(first, [Block(1, 3)], calibration=calibration)
    assert [bridge.block for bridge in report.bridges] == ["1:3"]
    one, two = second.config.provenance["pruning"]
    assert [bridge["block"] for bridge in one["bridges"]] == ["2:3"]
    assert [bridge["block"] for bridge in two["bridges"]] == ["1:2 3:4"]
    json.dumps(second.config.provenance)


def test_a_checkpoint_that_remembers_one_cut_as_a_mapping_is_read(model, tmp_path):
    first, _ = prune(model, [Block(2, 4)])
    config = save_checkpoint(first, tmp_path / "old") / "config.json"
    body = json.loads(config.read_text())
    (body["provenance"]["pruning"],) = body["provenance"]["pruning"]
    config.write_text(json.dumps(body))
    old = load_checkpoint(tmp_path / "old")
    assert pruned_blocks(old) == (Block(2, 4),)
    second, _ = prune(old, [Block(5, 6)])
    assert [cut["blocks"] for cut in second.config.provenance["pruning"]] == [["2:4"], ["7:8"]]


def test_what_was_not_cut_from_here_has_no_blocks_between(model):
    first, other = prune(model, [Block(2, 4)])[0], prune(model, [Block(3, 5)])[0]
    twice = prune(first, [Block(0, 1)])[0]
    assert blocks_between(model, model) == blocks_between(first, other) == blocks_between(first, model) == ()
    assert blocks_between(other, twice) == ()
    forgotten = prune(first, [Block(0, 1)])[0]  # as an older prunella left it: the second cut alone
    forgotten.config = forgotten.config.with_provenance(pruning={"blocks": ["0:1"]})
    assert blocks_between(model, forgotten) == ()
    assert torch.equal(forgotten.layers[0].mlp.down_proj.weight, twice.layers[0].mlp.down_proj.weight)
