import copy
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)  # fmt: skip

from prunella.device_runtime.base.errors import CheckpointError, UsageError
from prunella.evaluation.manifest import read_manifest
from prunella.pruning.blocks import Block, blocks_of, check_blocks
from prunella.pruning.bridge import (
    BridgeSums,
    Method,
    bridge_blocks,
    collect_candidates,
    collect_sums,
    why_no_bridge,
)
from prunella.pruning.calibration import speech_batches, speech_calibration, text_batches
from prunella.pruning.prune import layers_to_drop, prune, save_pruned
from prunella.pruning.redundancy import (
    RedundancyMap,
    agreement,
    hidden_states,
    load_maps,
    measure_redundancy,
    save_maps,
)
from prunella.pruning.selection import STRATEGIES, Evidence, choose_blocks
from prunella.pruning.surgery import drop_layers
from prunella.speech_llm import load
from prunella.speech_llm.batches import cross_entropy, text_batch
from prunella.speech_llm.decoder_view import decoder_view


@pytest.fixture(scope="module")
def calibration(small_speech_llm, noise_manifest):
    return speech_calibration(small_speech_llm, read_manifest(noise_manifest))


@given(st.sets(st.integers(0, 40), min_size=1))
def test_blocks_cover_exactly_the_layers(layers):
    blocks = blocks_of(layers)
    assert {layer for block in blocks for layer in block.layers} == layers
    assert all(one.stop < other.start for one, other in itertools.pairwise(blocks))
    assert [Block.parse(str(block)) for block in blocks] == list(blocks)


@pytest.mark.parametrize("text", ["", "3", "5:5", "7:3", "a:b", "-1:2", "1:2:3"])
def test_a_block_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="START:STOP"):
        Block.parse(text)


@pytest.mark.parametrize(
    ("blocks", "message"), [([], "nothing"), ([Block(4, 7)], "no layer 6"), ([Block(0, 6)], "all 6")]
)
def test_blocks_outside_the_model_are_refused(blocks, message):
    with pytest.raises(UsageError, match=message):
        check_blocks(blocks, 6)


@pytest.mark.step("analyze", family="ultravox")
@pytest.mark.slow
def test_the_map_is_the_papers_formula(small_speech_llm, noise_manifest):
    model = small_speech_llm
    batches = speech_batches(model, read_manifest(noise_manifest).utterances[:3], max_positions=10_000)
    found = measure_redundancy(model.decoder, batches)
    (batch,) = list(batches)
    with torch.no_grad(), hidden_states(model.decoder) as states:
        output = model.decoder.base_model(
            inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask
        )
        assert torch.equal(states[0], batch.inputs_embeds)
        assert torch.allclose(model.decoder.base_model.norm(states[-1]), output.last_hidden_state)
        rows = [state[batch.position_class == 1].double().numpy() for state in states]
    for start, size in [(0, 1), (2, 3), (0, 6), (5, 1)]:
        a, b = rows[start], rows[start + size]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert found.distance(["audio"])[start, size] == pytest.approx(
            np.mean(np.arccos(cosine)) / np.pi, abs=1e-5
        )
    assert sum(found.counts.values()) == int(batch.attention_mask.sum())


@pytest.mark.slow
def test_padding_does_not_reach_the_map(small_speech_llm, noise_manifest):
    clips = read_manifest(noise_manifest).utterances
    together = measure_redundancy(small_speech_llm.decoder, speech_batches(small_speech_llm, clips, 10_000))
    alone = measure_redundancy(small_speech_llm.decoder, speech_batches(small_speech_llm, clips, 1))
    assert together.counts == alone.counts
    np.testing.assert_allclose(together.distance(), alone.distance(), atol=1e-4)


def test_maps_survive_being_written(small_speech_llm, noise_manifest, tmp_path):
    model = small_speech_llm
    speech = measure_redundancy(
        model.decoder, speech_batches(model, read_manifest(noise_manifest).utterances)
    )
    text = measure_redundancy(
        model.decoder, text_batches(model.decoder, model.tokenizer, ["a line of text", "more"])
    )
    assert text.counts["audio"] == 0 and text.counts["text"] > 0
    save_maps({"speech": speech, "text": text}, tmp_path / "redundancy.json")
    again = load_maps(tmp_path / "redundancy.json")
    np.testing.assert_array_equal(again["speech"].distance(), speech.distance())
    assert agreement(again["speech"], speech).rank_correlation == pytest.approx(1.0)
    assert -1 <= agreement(speech, text).rank_correlation <= 1
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UsageError, match="no redundancy map"):
        load_maps(tmp_path / "other.json")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", [1, 3])
def test_every_strategy_cuts_as_many_as_asked(small_speech_llm, calibration, strategy, size):
    redundancy = measure_redundancy(small_speech_llm.decoder, calibration.fit)
    blocks = choose_blocks(Evidence(small_speech_llm.decoder, redundancy, calibration), size, strategy)
    assert sum(map(len, blocks)) == size
    if strategy in ("angular", "bridged", "deepest"):
        assert len(blocks) == 1
    if strategy == "deepest":
        assert blocks[0].stop == 5


@pytest.mark.slow
def test_the_map_is_measured_where_it_is_not_given(small_speech_llm, calibration):
    redundancy = measure_redundancy(small_speech_llm.decoder, calibration.fit)
    for strategy in ("angular", "block-influence"):
        given, measured = (
            choose_blocks(Evidence(small_speech_llm.decoder, one, calibration), 2, strategy)
            for one in (redundancy, None)
        )
        assert given == measured


def test_strategies_say_what_they_lack(small_speech_llm):
    evidence = Evidence(small_speech_llm.decoder)
    with pytest.raises(UsageError, match="--speech"):
        choose_blocks(evidence, 2, "bridged")
    with pytest.raises(UsageError, match="no strategy 'best'"):
        choose_blocks(evidence, 2, "best")
    with pytest.raises(UsageError, match="drop 1 to 5"):
        choose_blocks(evidence, 6, "deepest")


def test_greedy_takes_the_layer_that_does_nothing(small_speech_llm, calibration):
    idle = drop_layers(small_speech_llm.decoder, [Block(5, 6)])  # a copy with layers of its own to spoil
    layer = decoder_view(idle).layers[2]
    layer.mlp.down_proj.weight = torch.nn.Parameter(torch.zeros_like(layer.mlp.down_proj.weight), False)
    layer.self_attn.o_proj.weight = torch.nn.Parameter(torch.zeros_like(layer.self_attn.o_proj.weight), False)
    before = cross_entropy(idle, calibration.held_out)
    assert cross_entropy(drop_layers(idle, [Block(2, 3)]), calibration.held_out) == pytest.approx(
        before, abs=1e-4
    )
    redundancy = measure_redundancy(idle, calibration.fit)
    assert redundancy.ranked(1)[0] == (Block(2, 3), pytest.approx(0.0, abs=1e-3))


@pytest.mark.parametrize(
    ("drop", "keep", "layers"), [(3, None, 3), (None, 0.7, 9), (None, 0.99, 0), (30, None, 0), (0, None, 0)]
)
def test_drop_and_keep(drop, keep, layers):
    if layers:
        assert layers_to_drop(30, drop=drop, keep=keep) == layers
    else:
        with pytest.raises(UsageError, match="cannot drop"):
            layers_to_drop(30, drop=drop, keep=keep)


def _tiny(kind):
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    if kind == "qwen2":
        return Qwen2ForCausalLM(
            Qwen2Config(**sizes, use_sliding_window=True, sliding_window=4, max_window_layers=3)
        )
    if kind == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, head_dim=8, sliding_window=4))
    return SmolLM3ForCausalLM(SmolLM3Config(**sizes, pad_token_id=0))


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_surgery_survives_saving(kind, tmp_path):
    torch.manual_seed(0)
    full = _tiny(kind).eval()
    tokens = torch.randint(64, (2, 12))
    before = full(tokens).logits
    pruned = drop_layers(full, [Block(1, 3), Block(5, 6)])
    assert torch.equal(full(tokens).logits, before) and full.config.num_hidden_layers == 8
    assert pruned.config.num_hidden_layers == 5
    assert pruned.config.layer_types == [full.config.layer_types[i] for i in (0, 3, 4, 6, 7)]
    assert [layer.self_attn.layer_idx for layer in decoder_view(pruned).layers] == list(range(5))
    pruned.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(again(tokens).logits, pruned(tokens).logits, atol=1e-5, rtol=1e-5)
    # The cache slots are right: decoding in two steps equals one pass.
    first = pruned(tokens[:, :7], use_cache=True)
    second = pruned(tokens[:, 7:], past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits, pruned(tokens).logits[:, 7:], atol=1e-4, rtol=1e-4)


def test_a_cut_that_shifts_smollm3s_pattern_is_refused():
    full = _tiny("smollm3")
    with pytest.raises(UsageError, match="whole groups of 4"):
        drop_layers(full, [Block(1, 3)])
    assert drop_layers(full, [Block(1, 5)]).config.no_rope_layers == full.config.no_rope_layers[:4]


def test_only_lists_that_are_known_to_go_by_layer_are_cut():
    full = _tiny("qwen2")
    full.config.eos_token_id = list(range(8))
    full.config.rope_short_factor = [1.0] * 8
    pruned = drop_layers(full, [Block(1, 3)])
    assert (pruned.config.eos_token_id, len(pruned.config.rope_short_factor)) == (list(range(8)), 8)
    full.config.residual_weights = [0.5] * 8
    with pytest.raises(
        CheckpointError, match="qwen2's configuration has 'residual_weights', as many values as"
    ):
        drop_layers(full, [Block(1, 3)])
    full.config.residual_weights = [0.5] * 7
    assert drop_layers(full, [Block(1, 3)]).config.residual_weights == [0.5] * 7


def test_a_bridge_over_a_linear_block_is_exact():
    """Where the target is linear in the activations, and more so in M, both methods find it."""
    generator = torch.Generator().manual_seed(0)
    down = torch.nn.Linear(24, 12, bias=False)
    a = torch.randn(4000, 24, generator=generator)
    residual = torch.randn(4000, 12, generator=generator)
    truth = torch.eye(12) + 0.3 * torch.randn(12, 12, generator=generator)
    with torch.no_grad():
        moved = a @ down.weight.T
        sums = BridgeSums(down)
        sums.add(a[:1500], residual[:1500] + moved[:1500], (residual + moved @ truth.T)[:1500])
        sums.add(a[1500:], residual[1500:] + moved[1500:], (residual + moved @ truth.T)[1500:])
        for method in Method:
            torch.testing.assert_close(sums.solve(1e-9, method), truth @ down.weight, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(sums.solve(1e9), down.weight, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("multiplier", [1.0, 0.22])
@torch.no_grad()
def test_the_bridge_knows_what_granite_multiplies_into_the_residual_stream(multiplier):
    """What the cut block did is another down projection before it: the sums, collected from the model, give just that."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    full = GraniteForCausalLM(GraniteConfig(**sizes, **heads, residual_multiplier=multiplier)).eval()
    student = copy.deepcopy(full)
    for layer in decoder_view(full).layers[2:4]:  # says nothing, so that h is what the layer before made
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    truth = decoder_view(full).layers[1].mlp.down_proj.weight
    truth += 0.3 * torch.randn_like(truth)
    batch = text_batch(full, torch.randint(0, 96, (8, 64)).tolist())
    sums = collect_sums(full, drop_layers(student, [Block(2, 4)]), Block(2, 4), 1, [batch])
    torch.testing.assert_close(sums.solve(1e-9), truth, atol=1e-3, rtol=1e-3)
    (alone,) = collect_candidates(full, [Block(2, 4)], [batch])
    assert alone.scale == sums.scale == multiplier
    mapped = BridgeSums(decoder_view(student).layers[1].mlp.down_proj, multiplier)
    mapped.moments, mapped.errors = (
        sums.moments,
        sums.moments @ (mapped.weight.T * multiplier),
    )  # M is to double
    torch.testing.assert_close(
        mapped.solve(1e-9, Method.MAP), 2 * mapped.weight.float(), atol=1e-3, rtol=1e-3
    )


def test_the_refit_fits_at_least_as_well_as_the_map(small_speech_llm, calibration):
    decoder, block = small_speech_llm.decoder, Block(2, 4)
    sums = collect_sums(decoder, decoder, block, 1, calibration.fit)
    layer = decoder_view(decoder).layers[1]

    def error(weight):  # the weighted squared error, from the sums alone
        change = (weight - layer.mlp.down_proj.weight).double()
        return float((change @ sums.moments @ change.T).trace() - 2 * (change.T * sums.errors).sum())

    refit, mapped = (error(sums.solve(1e-6, method)) for method in (Method.REFIT, Method.MAP))
    assert refit <= mapped < 0


@pytest.mark.slow
def test_candidates_in_one_pass_equal_one_by_one(small_speech_llm, calibration):
    decoder, blocks = small_speech_llm.decoder, [Block(1, 3), Block(2, 4), Block(4, 6)]
    for block, together in zip(blocks, collect_candidates(decoder, blocks, calibration.fit), strict=True):
        alone = collect_sums(decoder, decoder, block, block.start - 1, calibration.fit)
        torch.testing.assert_close(together.moments, alone.moments)
        torch.testing.assert_close(together.errors, alone.errors)


@pytest.mark.step("bridge", family="ultravox")
def test_a_bridge_lowers_the_held_out_loss_or_is_not_applied(small_speech_llm, calibration):
    for blocks in ([Block(2, 4)], [Block(1, 2), Block(4, 5)]):
        pruned, reports = bridge_blocks(small_speech_llm.decoder, blocks, calibration)
        cut = cross_entropy(drop_layers(small_speech_llm.decoder, blocks), calibration.held_out)
        assert [report.block for report in reports] == [str(block) for block in blocks]
        assert cross_entropy(pruned, calibration.held_out) == pytest.approx(reports[-1].loss_after, abs=1e-5)
        assert reports[-1].loss_after <= cut + 1e-6
        assert all(one.loss_after < one.loss_before if one.applied else one.reason for one in reports)
        assert sum(p.numel() for p in pruned.parameters()) == sum(
            p.numel() for p in drop_layers(small_speech_llm.decoder, blocks).parameters()
        )


def test_where_no_bridge_is_possible_the_reason_is_given(small_speech_llm, calibration):
    _, (report,) = bridge_blocks(small_speech_llm.decoder, [Block(0, 1)], calibration)
    assert not report.applied and "layer 0" in report.reason
    assert "norm between" in why_no_bridge(_tiny("gemma3"), Block(2, 4))
    assert why_no_bridge(_tiny("qwen2"), Block(2, 4)) == ""


@pytest.mark.step("cut", family="ultravox")
def test_pruning_a_speech_llm_end_to_end(small_speech_llm, calibration, tmp_path):
    pruned, report = prune(small_speech_llm, [Block(2, 4)], calibration=calibration)
    assert (report.layers_before, report.layers_after, report.blocks) == (6, 4, ("2:4",))
    saved = save_pruned(pruned, report, tmp_path / "pruned")
    assert saved.max_logit_difference <= 1e-4
    again = load(tmp_path / "pruned")
    assert [cut["blocks"] for cut in again.config.provenance["pruning"]] == [["2:4"]]
    assert cross_entropy(again.decoder, calibration.held_out) == pytest.approx(report.loss_pruned, abs=1e-5)
    assert json.loads((tmp_path / "pruned" / "pruning.json").read_text())["bridges"][0]["block"] == "2:4"


def test_a_checkpoint_that_reads_back_otherwise_never_appears(small_speech_llm, tmp_path, monkeypatch):
    pruned, report = prune(small_speech_llm, [Block(2, 4)])
    other = drop_layers(small_speech_llm.decoder, [Block(1, 3)])
    monkeypatch.setattr("prunella.pruning.surgery.load_decoder", lambda _folder: (other, None))
    with pytest.raises(CheckpointError, match="read back differs"):
        save_pruned(pruned, report, tmp_path / "pruned")
    assert list(tmp_path.iterdir()) == []


def test_equal_states_give_distance_zero_not_nan():
    from prunella.pruning.redundancy import RedundancyMeter

    meter = RedundancyMeter(2)
    state = torch.full((1, 3, 8), 1e4)
    meter.add([state, state, -state], torch.tensor([[1, 1, -1]]))
    found = meter.result()
    assert found.distance()[0, 1] == pytest.approx(0, abs=1e-3) and found.distance()[0, 2] == pytest.approx(
        1, abs=1e-3
    )
    assert isinstance(found, RedundancyMap) and found.counts == {"prompt": 0, "audio": 2, "text": 0}


@pytest.mark.slow
def test_the_verbs_write_what_they_say(small_speech_llm, noise_manifest, tmp_path, capsys):
    from prunella.cli import main
    from prunella.speech_llm import save_checkpoint

    save_checkpoint(small_speech_llm, tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("one line\nanother line\nthe third\n")
    model, speech = str(tmp_path / "model"), str(noise_manifest)
    assert main(["analyze", model, "--speech", speech, "--text", str(text), "-o", str(tmp_path / "red")]) == 0
    assert "rank correlation" in capsys.readouterr().out
    assert (tmp_path / "red" / "redundancy.png").read_bytes()[:4] == b"\x89PNG"
    again = [
        "prune",
        model,
        "--drop",
        "2",
        "--speech",
        speech,
        "--map",
        str(tmp_path / "red" / "redundancy.json"),
    ]
    assert main([*again, "-o", str(tmp_path / "pruned")]) == 0
    assert "6 → 4 layers" in capsys.readouterr().out
    assert len(load(tmp_path / "pruned").layers) == 4
    assert main(["prune", model, "--drop", "9", "--speech", speech, "-o", str(tmp_path / "no")]) == 2
    assert "drop 1 to 5" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert (
        main(
            [
                "prune",
                str(tmp_path / "model" / "decoder"),
                "--drop",
                "1",
                "--text",
                str(text),
                "-o",
                str(tmp_path / "t"),
            ]
        )
        == 0
    )
    assert isinstance(
        SimpleNamespace(**json.loads((tmp_path / "t" / "config.json").read_text())).num_hidden_layers, int
    )
