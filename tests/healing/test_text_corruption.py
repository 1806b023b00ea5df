"""Transcripts are read with wrong tokens in training, predicted as they are, and left alone in evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunella.device_runtime.errors import UsageError
from prunella.healing.clips import open_speech, tokenise
from prunella.healing.features import FeatureStore
from prunella.healing.learner import Learner, corrupt_text, pass_inputs
from prunella.healing.plan import Augmentation, HealingPlan

PLAIN = Augmentation.none()


@pytest.fixture
def inputs(make_model, manifest):
    model = make_model()
    rows = tokenise(model, open_speech([manifest])[:4], ctc=False)
    store = FeatureStore(model, rows, PLAIN, 0, encode=True)
    loaded = [store.finish(store.load(i, 0), i, 0) for i in range(len(rows))]
    return pass_inputs(model, loaded, [row.tokens for row in rows], encoded=True)


def is_text(inputs, row):
    """Positions of a row where a token of the transcript is read."""
    tokens = int(inputs.target_lengths[row])
    end = int((inputs.labels[row] >= 0).nonzero().max()) + 1
    return torch.arange(inputs.input_ids.shape[1]).ge(end - tokens) & (
        torch.arange(inputs.input_ids.shape[1]) < end
    )


def test_only_tokens_of_the_transcript_are_changed_and_to_tokens_that_occur(inputs):
    torch.manual_seed(0)
    changed = corrupt_text(inputs, 0.5)
    text = torch.stack([is_text(inputs, row) for row in range(len(inputs.labels))])
    assert int(text.sum()) == int(inputs.target_lengths.sum())
    assert torch.equal(changed[~text], inputs.input_ids[~text])
    share = float((changed != inputs.input_ids)[text].float().mean())
    assert 0.2 < share < 0.6  # half are drawn anew, and some are drawn as they were
    assert set(changed[text].tolist()) <= set(inputs.input_ids[text].tolist())


def test_everything_and_nothing(inputs):
    assert torch.equal(corrupt_text(inputs, 0.0), inputs.input_ids)
    noise = replace(inputs, labels=torch.where(inputs.labels >= 0, -100, inputs.labels))
    assert torch.equal(corrupt_text(noise, 0.9), inputs.input_ids)  # no transcript at all


def test_it_changes_the_loss_of_training_only(inputs, make_model):
    plan = HealingPlan(steps=1, precision="fp32", augmentation=PLAIN)
    plain = Learner(make_model(), plan)
    corrupting = Learner(make_model(), replace(plan, text_corruption=0.5))
    with torch.no_grad():
        torch.manual_seed(0)
        assert corrupting.train()(inputs)[0] != plain.train()(inputs)[0]
        assert torch.equal(corrupting.eval()(inputs), plain.eval()(inputs))


def test_a_share_of_one_is_refused():
    with pytest.raises(UsageError, match="no share"):
        HealingPlan(steps=1, text_corruption=1.0)
