"""What people are told of a bundle's model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prunella.device_runtime.bundle import open_bundle
from prunella.device_runtime.servers.model_summary import ModelSummary


def cut(before: object, after: int) -> dict[str, object]:
    return {"layers_before": before, "layers_after": after, "blocks": ["0:1"]}


@pytest.fixture
def manifest(write_bundle):
    return open_bundle(write_bundle(), verify=False).manifest


def test_a_model_that_was_cut_twice_is_compared_with_the_uncut_one(manifest):
    facts = ModelSummary.of(replace(manifest, provenance={"pruning": [cut(5, 3), cut(3, 2)]}))
    assert (facts.layers, facts.layers_before, facts.quantization) == (2, 5, "int4")


@pytest.mark.parametrize(
    "pruning", [None, [], "ab", 7, {}, [7], [[]], [{}], [cut("5", 2)], [cut(True, 2)], [cut(1, 2)]]
)
def test_provenance_that_says_nothing_is_passed_over(manifest, pruning):
    facts = ModelSummary.of(replace(manifest, provenance={"pruning": pruning}))
    assert (facts.layers, facts.layers_before) == (2, 2)
    assert ModelSummary.of(replace(manifest, provenance={})) == facts


@pytest.mark.parametrize(("style", "lower"), [("lower", True), ("as-is", False)])
def test_a_model_that_writes_lower_case_is_named_as_such(manifest, style, lower):
    styled = replace(manifest, prompt=replace(manifest.prompt, text_style=style))
    assert ModelSummary.of(styled).lower_case is lower


def test_a_list_of_phrases_is_shown_without_its_comments(manifest):
    text = "# the kitchen\n\n light: turn (on | off) the light # both\n{n} = one | two\n"
    assert ModelSummary.of(manifest, text).phrases == ("light: turn (on | off) the light", "{n} = one | two")
    assert len(ModelSummary.of(manifest, "word\n" * 9_999).phrases) == 500
