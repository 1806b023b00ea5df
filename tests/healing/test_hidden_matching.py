"""Hidden states behind a cut are compared with those of the model before it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunella.device_runtime.errors import UsageError
from prunella.healing.clips import open_speech, tokenise
from prunella.healing.features import FeatureStore
from prunella.healing.heal import heal
from prunella.healing.hidden_matching import HiddenMatching
from prunella.healing.learner import Learner, pass_inputs
from prunella.healing.plan import Augmentation, HealingPlan
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune

PLAIN = Augmentation.none()
PLAN = HealingPlan(
    steps=30, rank=4, decoder_lr=5e-3, precision="fp32", batch_positions=300, micro_positions=150, augmentation=PLAIN,
    hidden_weight=1.0, kl_weight=0.0,
)  # fmt: skip


def inputs_of(model, clips):
    rows = tokenise(model, clips)
    store = FeatureStore(model, rows, PLAIN, 0, encode=True)
    loaded = [store.finish(store.load(i, 0), i, 0) for i in range(len(rows))]
    return pass_inputs(model, loaded, [row.tokens for row in rows], encoded=True)


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


def test_training_lowers_it(make_model, manifest):
    full = make_model(layers=4)
    pruned = cut(full)
    clips = open_speech([manifest])
    inputs = inputs_of(full, clips[:6])

    def distance():
        matching = HiddenMatching(pruned, full)
        learner = Learner(pruned, replace(PLAN, hidden_weight=0.0))
        with torch.no_grad():
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
