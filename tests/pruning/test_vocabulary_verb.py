"""`prunella prune --keep-vocabulary`: alone, with layers, measured, and refused."""

import json

import pytest
from tiny_models import tiny_speech_llm
from tiny_tokenizers import KINDS, TEXT
from transformers import LlamaConfig, LlamaForCausalLM

from prunella.cli import main
from prunella.speech_llm import load
from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.config import Prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_speech_llm(
        KINDS["gpt2"](), seed=0, layers=4, prompt=Prompt("U: ", "A:", "<|im_end|>"), text_style="lower",
        vocab_size=560, initializer_range=0.2, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return save_checkpoint(model, tmp_path_factory.mktemp("vocabulary") / "whole")


@pytest.fixture
def said(tmp_path):
    path = tmp_path / "said.txt"
    path.write_text("\n".join(TEXT[1:3]))
    return path


def report_of(folder):
    return json.loads((folder / "pruning.json").read_text())


def test_the_cost_is_measured_on_speech_and_printed(folder, said, noise_manifest, tmp_path, capsys):
    arguments = ["prune", str(folder), "--keep-vocabulary", str(said), "--speech", str(noise_manifest)]
    assert main([*arguments, "--keep-tokens", "300", "-o", str(tmp_path / "cut")]) == 0
    printed = capsys.readouterr().out
    report = report_of(tmp_path / "cut")
    assert report["blocks"] == [] and report["layers_before"] == report["layers_after"] == 4
    found = report["vocabulary"]
    assert found["kept_by"] == "count" and found["floor"] < found["tokens_after"] <= 300
    cost = found["speech"]
    assert cost["clips"] > 0 and cost["loss_before"] > 0 and cost["loss_after"] > 0
    assert cost["tokens_per_second_after"] >= cost["tokens_per_second_before"] > 0
    for word in ("tokens ", "texts ", "speech ", "nats a word", "WER ", "in more pieces"):
        assert word in printed
    model = load(tmp_path / "cut")
    assert model.config.provenance["vocabulary"][0]["speech"]["clips"] == cost["clips"]
    assert model.config.provenance["name"] == f"tiny-vocabulary-{found['tokens_after']}"


def test_layers_and_tokens_go_in_one_call(folder, said, tmp_path):
    arguments = ["prune", str(folder), "--block", "1:2", "--no-bridge", "--keep-vocabulary", str(said)]
    assert main([*arguments, "-o", str(tmp_path / "cut")]) == 0
    model = load(tmp_path / "cut")
    assert len(model.layers) == 3 and model.view.vocab_size < 560
    assert [cut["blocks"] for cut in model.config.provenance["pruning"]] == [["1:2"]]
    assert len(model.config.provenance["vocabulary"]) == 1


def test_a_cut_vocabulary_is_cut_again(folder, said, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["prune", str(folder), "--lossless", "-o", str(first)]) == 0
    assert main(["prune", str(first), "--keep-vocabulary", str(said), "-o", str(second)]) == 0
    alone = tmp_path / "alone"
    assert main(["prune", str(folder), "--keep-vocabulary", str(said), "-o", str(alone)]) == 0
    assert load(second).tokenizer.get_vocab() == load(alone).tokenizer.get_vocab()
    assert len(load(second).config.provenance["vocabulary"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to cut"),
        (["--keep-tokens", "300"], "give the texts with --keep-vocabulary"),
        (["--keep-vocabulary"], "needs texts"),
        (["--keep-vocabulary", "missing.txt"], "cannot read the text missing.txt"),
        (["--keep-vocabulary", "EMPTY"], "there is no text"),
        (["--keep-vocabulary", "SAID", "--keep-tokens", "5"], "--keep-tokens 5 is too few"),
        (["--keep-vocabulary", "SAID", "--keep-tokens", "300", "--lossless"], "not allowed with"),
    ],
)
def test_nonsense_is_refused(folder, said, tmp_path, capsys, options, message):
    (tmp_path / "empty.txt").write_text("\n")
    files = {"SAID": str(said), "EMPTY": str(tmp_path / "empty.txt")}
    arguments = [files.get(option, option) for option in options]
    try:
        code = main(["prune", str(folder), *arguments, "-o", str(tmp_path / "cut")])
    except SystemExit as stopped:  # argparse's
        code = stopped.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cut").exists()


def test_a_model_without_a_tokenizer_is_refused(said, tmp_path, capsys):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes)).save_pretrained(tmp_path / "whole")
    arguments = ["prune", str(tmp_path / "whole"), "--keep-vocabulary", str(said)]
    assert main([*arguments, "-o", str(tmp_path / "cut")]) == 2
    assert "holds no tokenizer" in capsys.readouterr().err


@pytest.mark.slow
def test_healing_takes_a_teacher_with_the_same_tokens(folder, said, noise_manifest, tmp_path, capsys):
    cut = tmp_path / "cut"
    assert main(["prune", str(folder), "--keep-vocabulary", str(said), "-o", str(cut)]) == 0
    heal = ["heal", str(cut), "--speech", str(noise_manifest), "--steps", "2"]
    assert main([*heal, "--teacher", str(folder), "-o", str(tmp_path / "refused")]) == 2
    assert "cut its own by the same texts" in capsys.readouterr().err
    assert main([*heal, "--teacher", str(cut), "-o", str(tmp_path / "healed")]) == 0
    healed = load(tmp_path / "healed")
    assert healed.tokenizer.get_vocab() == load(cut).tokenizer.get_vocab()
    assert healed.config.provenance["vocabulary"] and healed.config.provenance["healing"]
