"""Hidden states behind a cut are compared with those of the model before it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunella.device_runtime.base.errors import UsageError
from prunella.healing.clips import open_speech, tokenize
from prunella.healing.features import FeatureStore
from prunella.healing.heal import heal
from prunella.healing.hidden_matching import HiddenMatching
from prunella.healing.learner import Learner
from prunella.healing.pass_inputs import pass_inputs
from prunella.healing.plan import Augmentation, HealingPlan
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune
from prunella.pruning.surgery import share_weights

PLAIN = Augmentation.none()
PLAN = HealingPlan(
    steps=30, rank=4, decoder_lr=5e-3, precision="fp32", batch_positions=300, micro_positions=150, augmentation=PLAIN,
    hidden_weight=1.0, kl_weight=0.0,
)  # fmt: skip


def inputs_of(model, clips):
    rows = tokenize(model, clips)
    store = FeatureStore(model, rows, PLAIN, 0, encode=True)
    ready = [store.pass_clip(i, store.finish(store.load(i, 0), i, 0)) for i in range(len(rows))]
    return pass_inputs(model, ready, encoded=True)


def cut(model):
    pruned, _ = prune(model, [Block(1, 2)])
    return pruned


def test_the_distance_is_of_the_states_around_the_cut(make_model, manifest):
    full = make_model(layers=4)
    pruned = cut(full)
    inputs = inputs_of(full, open_speech([manifest])[:3])
    learner = Learner(pruned, PLAN, teacher=full)
    plain = Learner(cut(full), replace(PLAN, hidden_weight=0.0), teacher=full)
    with torch.no_grad():
        added = float(learner(inputs)[0] - plain(inputs)[0])
        embeds = plain.decoder_inputs(plain.audio_embeddings(inputs), inputs.frames // 5, inputs)
        states = full.decoder.model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
        before, after = states[1], states[2]  # what the pruned layer 1 gets now, and what layer 2 got
        expected = 0.0
        for row in range(3):
            scored = inputs.labels[row] >= 0
            length = int(scored.nonzero().max()) + 1
            off = (before[row] - after[row]).square().sum(-1) / after[row].square().sum(-1)
            expected += float(off[:length].mean() * scored.sum())
    assert added == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_training_lowers_it(make_model, manifest):
    full = make_model(layers=4)
    pruned = cut(full)
    clips = open_speech([manifest])
    inputs = inputs_of(full, clips[:6])

    def distance():
        matching = HiddenMatching(pruned, full)
        learner = Learner(pruned, replace(PLAN, hidden_weight=0.0))
        with torch.no_grad(), matching.recording():
            learner(inputs)
            Learner(full, replace(PLAN, hidden_weight=0.0))(inputs)
            return float(matching.distance(inputs))

    before = distance()
    heal(pruned, replace(PLAN, hidden_weight=30.0, train=("decoder",)), clips, teacher=full)
    assert distance() < before


def test_a_model_that_was_not_cut_has_nothing_to_match(make_model):
    model = make_model(layers=3)
    with pytest.raises(UsageError, match="pruned checkpoint"):
        HiddenMatching(model, model)


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind).values()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_healed_model_is_left_without_hooks(checkpointing, make_model, manifest):
    full = make_model(layers=4)
    pruned = cut(full)
    plan = replace(PLAN, steps=2, gradient_checkpointing=checkpointing)
    heal(pruned, plan, open_speech([manifest])[:4], teacher=full)
    assert hooks_of(pruned) == hooks_of(full) == hooks_of(share_weights(pruned.decoder)) == []


class Stop(Exception):
    pass


def test_a_run_that_fails_leaves_an_ordinary_model(make_model, manifest):
    full = make_model(layers=4)
    pruned = cut(full)
    names = set(pruned.state_dict())

    def stop(step, loss):
        raise Stop

    with pytest.raises(Stop):
        heal(pruned, PLAN, open_speech([manifest])[:4], teacher=full, on_step=stop)
    assert hooks_of(pruned) == hooks_of(full) == []
    # Refused before the first step: the full model has no cut to match.
    with pytest.raises(UsageError, match="pruned checkpoint"):
        heal(full, PLAN, open_speech([manifest])[:4], teacher=make_model(layers=4))
    for model, expected in ((pruned, names), (full, set(make_model(layers=4).state_dict()))):
        assert set(model.state_dict()) == expected
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_pass_that_fails_keeps_no_state(make_model, manifest, monkeypatch):
    full = make_model(layers=4)
    pruned = cut(full)
    learner = Learner(pruned, PLAN, teacher=full)
    inputs = inputs_of(full, open_speech([manifest])[:2])

    def fail(*given, **named):
        raise Stop

    monkeypatch.setattr(full.layers[3], "forward", fail)
    with pytest.raises(Stop):
        learner(inputs)
    assert hooks_of(pruned) == hooks_of(full) == []


def test_states_are_compared_over_several_cuts(make_model, manifest):
    full = make_model(layers=6)
    for silent in (1, 4):  # which change nothing, so that the states behind them are those before them
        layer = full.layers[silent]
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            part.weight.data.zero_()
    once, _ = prune(full, [Block(4, 5)])
    twice, _ = prune(once, [Block(1, 2)])
    inputs = inputs_of(full, open_speech([manifest])[:2])
    for teacher, cuts in ((full, 2), (once, 1)):
        matching = HiddenMatching(twice, teacher)
        with torch.no_grad(), matching.recording():
            for model in (twice, teacher):
                Learner(model, replace(PLAN, hidden_weight=0.0))(inputs)
            assert float(matching.distance(inputs)) < 1e-6
            assert len(hooks_of(twice)) == len(hooks_of(teacher)) == cuts
    with pytest.raises(UsageError, match="not what this model was cut from"):
        HiddenMatching(twice, make_model(layers=5))
