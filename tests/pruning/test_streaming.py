"""A decoder that stays on disk: the same numbers, the same choice and the same weights as one in memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from decoder_families import CONFIGS
from safetensors.torch import load_file, save_file
from tiny_families import FAMILY_NAMES, write_tiny
from tiny_models import byte_level_tokenizer, write_ultravox
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from prunella.cli import main
from prunella.device_runtime.base.errors import CheckpointError
from prunella.pruning.blocks import Block
from prunella.pruning.bridge import Method, collect_sums
from prunella.pruning.bridge_rows import BridgeRows
from prunella.pruning.calibration import text_calibration
from prunella.pruning.prune import prune, save_pruned
from prunella.pruning.redundancy import load_maps, measure_redundancy
from prunella.pruning.selection import STRATEGIES, Evidence, choose_blocks
from prunella.pruning.surgery import drop_layers
from prunella.speech_llm import load_any
from prunella.speech_llm.batches import cross_entropies, cross_entropy, text_batch
from prunella.speech_llm.checkpoint import load_decoder, save_checkpoint
from prunella.speech_llm.streamed_loading import empty_decoder
from prunella.speech_llm.streaming import stream_of
from prunella.speech_llm.weight_files import INDEX_NAME, WeightFiles

LINES = "A line of text that is read.\nAnother one, longer than the first.\nshort\nThe fourth.\nfive six seven\nEnd."


@pytest.fixture(scope="module", params=["shards of an untied bf16", "one file, tied, fp32"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("streamed") / "model"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    untied = request.param.startswith("shards")
    model = Qwen2ForCausalLM(
        Qwen2Config(
            **sizes,
            vocab_size=320,
            num_hidden_layers=6,
            initializer_range=0.2,
            tie_word_embeddings=not untied,
        )
    )
    model.to(torch.bfloat16 if untied else torch.float32).save_pretrained(
        path, max_shard_size="60KB" if untied else "1GB"
    )
    byte_level_tokenizer().save_pretrained(path)
    assert (path / INDEX_NAME).is_file() == untied
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text(LINES)
    return path


@pytest.fixture(scope="module")
def both(folder):
    return load_any(folder), load_any(folder, stream="on")


def weights_of(folder) -> dict[str, torch.Tensor]:
    return {
        name: one
        for path in sorted(folder.glob("model*.safetensors"))
        for name, one in load_file(path).items()
    }


def test_a_streamed_decoder_holds_no_layer_and_says_the_same(both, text):
    whole, streamed = both
    ids = torch.tensor([[5, 9, 40, 41, 2]])
    assert all(one.is_meta for one in streamed.decoder.model.layers.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(streamed.decoder(ids).logits, whole.decoder(ids).logits)
    data = [text_calibration(one, text) for one in both]
    maps = [measure_redundancy(one.decoder, own.fit) for one, own in zip(both, data, strict=True)]
    np.testing.assert_allclose(maps[1].distance(), maps[0].distance(), atol=1e-6)
    losses = [cross_entropy(one.decoder, own.held_out) for one, own in zip(both, data, strict=True)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert all(one.is_meta for one in streamed.decoder.model.layers.parameters())
    assert streamed.decoder.lm_head.weight.is_meta and streamed.decoder.model.embed_tokens.weight.is_meta


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_layers_are_chosen_and_the_same_weights_written(both, text, strategy, tmp_path):
    found = []
    for name, model in zip(("whole", "streamed"), both, strict=True):
        calibration = text_calibration(model, text)
        blocks = choose_blocks(Evidence(model.decoder, None, calibration), 2, strategy)
        pruned, report = prune(model, blocks, calibration=calibration, strategy=strategy)
        save_pruned(pruned, report, tmp_path / name)
        found.append((blocks, report))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1].bridges, found[1][1].bridges, strict=True):
        assert (one.applied, one.ridge) == (other.applied, other.ridge)
    assert found[1][1].loss_pruned == pytest.approx(found[0][1].loss_pruned, abs=0.02)
    expected, stored = weights_of(tmp_path / "whole"), weights_of(tmp_path / "streamed")
    assert expected.keys() == stored.keys()
    rounded = {name for name, one in stored.items() if one.dtype == torch.bfloat16}
    for name, tensor in stored.items():
        tolerance = 0.02 if name in rounded else 1e-5
        torch.testing.assert_close(tensor.float(), expected[name], atol=tolerance, rtol=tolerance)
    again, _ = load_decoder(tmp_path / "streamed")
    assert again.config.num_hidden_layers == 4 == len(again.config.layer_types)


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("rows", ["fewer positions than features", "more"])
def test_rows_on_disk_give_the_bridge_that_sums_in_memory_give(both, text, method, rows):
    lines = f"{LINES}\n{LINES}" if rows == "more" else "ab\ncdef\ngh"
    text = text.with_name(f"{rows}.txt")
    text.write_text(lines)
    found = []
    for model in both:
        fit = text_calibration(model, text).fit
        found.append(collect_sums(model.decoder, model.decoder, Block(2, 4), 1, fit))
    assert isinstance(found[1], BridgeRows) and (found[1].count > 96) == (rows == "more")
    for ridge, solution in zip((0.01, 0.1), found[1].solutions((0.01, 0.1), method), strict=True):
        torch.testing.assert_close(solution, found[0].solve(ridge, method), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_speech_llms_of_stock_classes_are_streamed(family, noise_manifest, tmp_path):
    write_tiny(family, tmp_path / "model")
    found = {}
    for stream in ("off", "on"):
        arguments = ["prune", str(tmp_path / "model"), "--block", "2:4", "--speech", str(noise_manifest)]
        assert main([*arguments, "--stream", stream, "-o", str(tmp_path / stream)]) == 0
        found[stream] = json.loads((tmp_path / stream / "pruning.json").read_text())
    assert found["on"]["loss_full"] == pytest.approx(found["off"]["loss_full"], abs=1e-4)
    assert found["on"]["loss_pruned"] == pytest.approx(found["off"]["loss_pruned"], abs=1e-3)
    expected, stored = (weights_of(tmp_path / stream) for stream in ("off", "on"))
    assert expected.keys() == stored.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-3, rtol=1e-3)
    configs = [json.loads((tmp_path / stream / "config.json").read_text()) for stream in ("off", "on")]
    for config in configs:
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            part.pop("dtype", None)
    assert configs[0] == configs[1]
    names = [sorted(path.name for path in (tmp_path / stream).iterdir()) for stream in ("off", "on")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_every_kind_of_decoder_says_the_same_from_disk(tmp_path):
    batch = [[5, 6, 7, 8, 9, 33, 44], [7, 8, 9]]
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        whole = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        whole.save_pretrained(tmp_path / name)
        losses = []
        for decoder in (whole, empty_decoder(tmp_path / name)):
            cuts = [decoder] if name == "smollm3" else [decoder, drop_layers(decoder, [Block(1, 2)])]
            with torch.inference_mode():
                losses.append(cross_entropies(cuts, [text_batch(decoder, batch)]))
        assert losses[1] == pytest.approx(losses[0], abs=1e-5), name


@pytest.mark.slow
def test_own_folders_and_ultravox_are_streamed(small_speech_llm, noise_manifest, tmp_path, capsys):
    own = save_checkpoint(small_speech_llm, tmp_path / "own")
    hub = write_ultravox(tmp_path / "hub", layers=4)
    for folder in (own, hub):
        reports = []
        for stream in ("off", "on"):
            out = tmp_path / f"{folder.name}-{stream}"
            arguments = ["prune", str(folder), "--drop", "2", "--speech", str(noise_manifest)]
            assert main([*arguments, "--stream", stream, "-o", str(out)]) == 0
            reports.append(json.loads((out / "pruning.json").read_text()))
        assert "layer by layer from disk" in capsys.readouterr().err
        assert reports[0]["blocks"] == reports[1]["blocks"]
        assert reports[1]["loss_pruned"] == pytest.approx(reports[0]["loss_pruned"], abs=1e-3)


@pytest.mark.slow
def test_the_command_analyses_from_disk_where_memory_is_short(folder, text, tmp_path, capsys, monkeypatch):
    for name, free in (("whole", 1 << 40), ("streamed", 1)):
        monkeypatch.setattr("prunella.speech_llm.streamed_loading.free_memory", lambda free=free: free)
        assert main(["analyze", str(folder), "--text", str(text), "-o", str(tmp_path / name)]) == 0
        assert ("layer by layer" in capsys.readouterr().err) == (name == "streamed")
    maps = [load_maps(tmp_path / name / "redundancy.json")["text"] for name in ("whole", "streamed")]
    np.testing.assert_allclose(maps[1].distance(), maps[0].distance(), atol=1e-6)


def test_what_is_written_is_sharded_like_any_checkpoint(both, tmp_path, monkeypatch):
    _, streamed = both
    monkeypatch.setattr("prunella.speech_llm.weight_files.write_weights.__defaults__", (100_000,))
    pruned, report = prune(streamed, [Block(0, 2)])
    assert stream_of(pruned.decoder) is stream_of(streamed.decoder)
    save_pruned(pruned, report, tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == sum(one.size for one in WeightFiles(tmp_path / "out").values())
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_damaged_and_other_layouts_are_refused_in_words(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    victim = sorted(broken.glob("model*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        load_any(broken, stream="on")
    tensors = load_file(sorted(folder.glob("model*.safetensors"))[0])
    save_file({f"elsewhere.{name}": one for name, one in tensors.items()}, victim, {"format": "pt"})
    with pytest.raises(CheckpointError, match="--stream off"):
        load_any(broken, stream="on")


def test_tokens_of_a_streamed_model_are_not_cut(folder, text, tmp_path, capsys):
    arguments = [
        "prune",
        str(folder),
        "--stream",
        "on",
        "--keep-vocabulary",
        str(text),
        "-o",
        str(tmp_path / "no"),
    ]
    assert main(arguments) == 2
    assert "cut its layers first" in capsys.readouterr().err and not (tmp_path / "no").exists()
