"""A folder that is no model is named as what it is: no traceback, no prompt, and no code of its own runs."""

from __future__ import annotations

import errno
import json
import sys

import pytest
import torch
from safetensors import SafetensorError
from tiny_models import byte_level_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from prunella.cli import main
from prunella.device_runtime.base.errors import CheckpointError
from prunella.pruning.blocks import Block
from prunella.pruning.surgery import drop_layers
from prunella.speech_llm import load_any, save_checkpoint
from prunella.speech_llm.checkpoint import save_decoder
from prunella.speech_llm.decoder_view import decoder_view

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 4,
}


@pytest.fixture
def folder(tmp_path):
    """A small text LLM on disk."""
    save_decoder(LlamaForCausalLM(LlamaConfig(**SIZES)), byte_level_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def set_config(folder, **facts):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def lfs_pointer(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    )


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def adapter(folder):
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"})
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lfs_pointer, r"model.safetensors is a git-lfs pointer, .*: run `git lfs pull` in "),
        (cut_short, r"model.safetensors is cut short or damaged .*download or copy it again"),
        (adapter, r"is a LoRA adapter of some/base, not a model: merge it first"),
        (
            lambda folder: set_config(folder, quantization_config={"quant_method": "bitsandbytes"}),
            r"is quantised already \(bitsandbytes\): prunella starts from float weights",
        ),
        (
            lambda folder: set_config(folder, model_type="nemotron_h_omni", audio_config={"hidden_size": 8}),
            r"is a speech LLM of the kind 'nemotron_h_omni' .*there are Ultravox .* it would go deaf",
        ),
    ],
)
def test_what_is_no_model_is_named(folder, spoil, message, tmp_path, capsys):
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_any(folder)
    assert "\n" not in str(raised.value)
    arguments = ["prune", str(folder), "--block", "1:2", "--no-bridge", "-o", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("stdin", ["y\n" * 20, ""])
def test_a_folders_own_code_never_runs_and_is_not_asked_about(folder, stdin, tmp_path, monkeypatch):
    import io

    ran = tmp_path / "ran"
    (folder / "configuration_my.py").write_text(f"open({str(ran)!r}, 'w')\n")
    auto = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "configuration_my.My"}
    set_config(folder, model_type="my_llm", auto_map=auto)
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    with pytest.raises(CheckpointError, match="brings its own code, which prunella never runs"):
        load_any(folder)
    assert not ran.exists() and sys.stdin.read() == stdin


def test_a_disk_that_fills_while_saving_is_said_as_such(small_speech_llm, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("prunella.speech_llm.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left") as raised:
        save_checkpoint(small_speech_llm, tmp_path / "model")
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_lists_of_layer_numbers_are_renumbered_by_a_cut():
    config = Qwen3MoeConfig(
        **SIZES,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        mlp_only_layers=[0, 3],
    )
    torch.manual_seed(0)
    cut = drop_layers(Qwen3MoeForCausalLM(config).eval(), [Block(1, 3)])
    assert cut.config.mlp_only_layers == [0, 1]
    read_back = Qwen3MoeForCausalLM(cut.config).eval()
    read_back.load_state_dict(cut.state_dict())
    tokens = torch.tensor([[5, 9, 77]])
    assert torch.equal(read_back(tokens).logits, cut(tokens).logits)


def test_what_goes_by_the_number_of_the_layer_is_refused():
    decoder = LlamaForCausalLM(LlamaConfig(**SIZES))
    decoder.config.scale_of_layer = {1: {"head_dim": 32}}
    with pytest.raises(CheckpointError, match="'scale_of_layer' by number of the layer"):
        drop_layers(decoder, [Block(1, 3)])
    decoder.config.hidden_size_per_layer_input = 8
    with pytest.raises(CheckpointError, match="gives every layer embeddings of its own"):
        decoder_view(decoder)


def test_a_model_larger_than_all_memory_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr("prunella.speech_llm.model_folder.whole_memory", lambda: 20_000)
    with pytest.raises(CheckpointError, match=r"takes 0.0 GB of memory in float32.*take one with more"):
        load_any(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 40)  # a header of no length: its reader says so
    with pytest.raises(CheckpointError, match="damaged"):
        load_any(folder)


def test_weights_that_are_not_finite_are_named_as_such(folder, tmp_path, capsys):
    model = load_any(folder)
    decoder_view(model.decoder).layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    save_decoder(model.decoder, model.tokenizer, tmp_path / "nan")
    cut = ["--block", "1:2", "--no-bridge", "-o", str(tmp_path / "out")]
    assert main(["prune", str(tmp_path / "nan"), *cut]) == 1
    assert "logits are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer_says_so(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="it holds no tokenizer that transformers can read"):
        load_any(folder)


def test_what_other_loaders_want_beside_the_weights_is_kept(folder, tmp_path):
    for name in ("preprocessor_config.json", "tokenizer.model"):
        (folder / name).write_text(name)
    (folder / "notes.txt").write_text("mine")
    before = (folder / "tokenizer.json").read_bytes()
    for source, out in ((folder, "one"), (tmp_path / "one", "two"), (folder, "one")):
        cut = ["--block", "1:2", "--no-bridge", "-o", str(tmp_path / out)]
        assert main(["prune", str(source), *cut]) == 0
    for out in ("one", "two"):
        for name in ("preprocessor_config.json", "tokenizer.model"):
            assert (tmp_path / out / name).read_text() == name
        assert not (tmp_path / out / "notes.txt").exists()
        assert (tmp_path / out / "tokenizer.json").read_bytes() == before


def test_a_bundle_and_a_folder_of_models_are_named_as_such(folder, tmp_path):
    with pytest.raises(CheckpointError, match=f"is no model, but holds some: name one of {folder}$"):
        load_any(tmp_path)
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a bundle, from which no model"):
        load_any(tmp_path)
