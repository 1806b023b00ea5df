"""What is known of a model without its weights is what the loaded model says."""

from __future__ import annotations

import json

import pytest

from prunella.device_runtime.base.errors import CheckpointError
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune
from prunella.speech_llm.checkpoint import save_checkpoint, save_decoder
from prunella.speech_llm.load import load
from prunella.speech_llm.model_facts import facts_of, read_facts


def test_a_checkpoint_without_its_weights_says_the_same(small_speech_llm, tmp_path):
    pruned, _ = prune(small_speech_llm, [Block(1, 3)])
    folder = save_checkpoint(pruned, tmp_path / "pruned")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    # A folder that is no checkpoint otherwise is known by its projector.
    (folder / "projector.safetensors").touch()
    read, known = read_facts(folder), facts_of(pruned)
    assert read.num_layers == known.num_layers == len(pruned.layers) == 4
    assert read.provenance == json.loads(json.dumps(known.provenance))
    assert read.decoder.model_type == known.decoder.model_type == "llama"
    assert facts_of(read) is read


def test_what_is_no_speech_llm_is_refused_as_load_does(small_speech_llm, tmp_path):
    save_decoder(small_speech_llm.decoder, small_speech_llm.tokenizer, tmp_path / "text")
    with pytest.raises(CheckpointError, match="text LLM without an audio encoder"):
        read_facts(tmp_path / "text")
    (tmp_path / "broken" / "decoder").mkdir(parents=True)
    (tmp_path / "broken" / "projector.safetensors").touch()
    for read in (load, read_facts):
        with pytest.raises(CheckpointError, match=r"holds no config\.json"):
            read(tmp_path / "broken")
    small_speech_llm.config.save(tmp_path / "broken")
    for read in (load, read_facts):
        with pytest.raises(CheckpointError, match="cannot load a causal LM"):
            read(tmp_path / "broken")
