"""Before a family's graphs are written, its parts are compared with transformers' own forward of the whole."""

from __future__ import annotations

import dataclasses

import pytest
from tiny_families import FAMILY_NAMES, write_tiny

from prunella.device_runtime.base.errors import ExportError
from prunella.export.export import export_float
from prunella.export.stock_gate import gate_stock
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune
from prunella.speech_llm import load
from prunella.targets.profile import load_target

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def model(request, tmp_path_factory):
    return load(write_tiny(request.param, tmp_path_factory.mktemp("families") / request.param))


def test_the_parts_say_what_the_whole_says(model):
    assert gate_stock(model).logit_error < 1e-4
    pruned, _ = prune(model, (Block(1, 2), Block(3, 5)), bridge=False)
    assert gate_stock(pruned).logit_error < 1e-4


def with_geometry(model, **changes):
    geometry = dataclasses.replace(model.config.geometry, **changes)
    return dataclasses.replace(model.config, geometry=geometry)


def test_a_family_file_that_counts_tokens_wrongly_is_seen(model, monkeypatch):
    rows = model.config.geometry.encoder_frames
    wrong = with_geometry(model, encoder_frames=lambda valid: rows(valid) - model.config.frames_per_token)
    monkeypatch.setattr(model, "config", wrong)
    with pytest.raises(ExportError, match=r"taken apart|does not take"):
        gate_stock(model)


def test_a_family_file_with_other_features_is_seen(model, monkeypatch, tmp_path):
    heard = model.audio_encoder.forward
    monkeypatch.setattr(model.audio_encoder, "forward", lambda mel, valid=None: heard(1.1 * mel, valid))
    with pytest.raises(ExportError, match=r"taken apart, the model's logits are .* standard deviations"):
        export_float(model, load_target("x86-cpu"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_model_healed_on_trimmed_audio_is_no_longer_the_stock_class(model, monkeypatch):
    monkeypatch.setattr(model, "config", model.config.with_facts(trimmed=True))
    report = gate_stock(model)
    assert (report.logit_error is None) == (not model.stock.family.true_length)
    assert (report.not_compared is None) == model.stock.family.true_length


def test_a_model_without_a_stock_class_has_nothing_to_be_compared_with(tiny_model):
    assert gate_stock(tiny_model) is None
