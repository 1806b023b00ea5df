"""The options of `prunella heal` are made from the plan's fields: their names, types and defaults are a promise."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from prunella.device_runtime.base.errors import UsageError
from prunella.healing.heal import add_arguments, plan_from
from prunella.healing.plan import Augmentation, HealingPlan

NEEDED = ["MODEL", "--speech", "S", "-o", "OUT"]
# name, where its value goes, the default, a value as it is written, what it becomes
OPTIONS = [
    ("--dev", "dev", None, "D", "D"),
    ("--dev-clips", "dev_clips", 60, "3", 3),
    ("--teacher", "teacher", None, "T", "T"),
    ("--stage", "stage", "transcript", "ctc", "ctc"),
    ("--train", "train", "projector,decoder", "projector", "projector"),
    ("--lora", "lora", "all", "0,3:7", "0,3:7"),
    ("--rank", "rank", 32, "8", 8),
    ("--alpha", "alpha", None, "2", 2.0),
    ("--learning-rate", "decoder_lr", 5e-4, "1e-3", 1e-3),
    ("--projector-lr", "projector_lr", 5e-4, "1e-3", 1e-3),
    ("--encoder-lr", "encoder_lr", 1e-4, "1e-3", 1e-3),
    ("--ctc-head-lr", "ctc_head_lr", 2e-3, "1e-3", 1e-3),
    ("--new-ctc-head", "new_ctc_head", False, None, True),
    ("--alphabet", "alphabet", "", "abc", "abc"),
    ("--trim-audio", "trim_audio", False, None, True),
    ("--language", "language", "", "de", "de"),
    ("--ctc-weight", "ctc_weight", 0.0, "1", 1.0),
    ("--kl-weight", "kl_weight", 0.5, "1", 1.0),
    ("--hidden-weight", "hidden_weight", 0.0, "1", 1.0),
    ("--label-smoothing", "label_smoothing", 0.0, "1", 1.0),
    ("--steps", "steps", None, "7", 7),
    ("--epochs", "epochs", None, "7", 7.0),
    ("--minutes", "minutes", None, "7", 7.0),
    ("--batch-positions", "batch_positions", 4096, "7", 7),
    ("--micro-positions", "micro_positions", 2048, "7", 7),
    ("--curriculum", "curriculum", False, None, True),
    ("--no-augmentation", "no_augmentation", False, None, True),
    ("--variants", "variants", 4, "7", 7),
    ("--speed", "speed", 0.1, "0", 0.0),
    ("--precision", "precision", "auto", "bf16", "bf16"),
    ("--compile", "compile", "auto", "off", "off"),
    ("--base-bits", "base_bits", 0, "4", 4),
    ("--rounding", "rounding", 0, "32", 32),
    ("--gradient-checkpointing", "gradient_checkpointing", False, None, True),
    ("--estimate", "estimate", False, None, True),
    ("--checkpoint-minutes", "checkpoint_minutes", 3.0, "7", 7.0),
    ("--checkpoint-steps", "checkpoint_steps", None, "7", 7),
    ("--dev-minutes", "dev_minutes", 10.0, "7", 7.0),
    ("--dev-steps", "dev_steps", None, "7", 7),
    ("--patience", "patience", 0, "7", 7),
    ("--seed", "seed", 0, "7", 7),
    ("--cache", "cache", None, "C", Path("C")),
]


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


def test_without_options_everything_has_its_default(parser):
    defaults = {place: default for _, place, default, _, _ in OPTIONS}
    assert vars(parser.parse_args(NEEDED)) == {"model": "MODEL", "speech": ["S"], "out": "OUT", **defaults}
    assert plan_from(parser.parse_args([*NEEDED, "--steps", "1"])) == HealingPlan(steps=1)


@pytest.mark.parametrize(("name", "place", "_default", "written", "value"), OPTIONS)
def test_an_option_becomes_a_value_of_its_type(parser, name, place, _default, written, value):
    got = getattr(parser.parse_args([*NEEDED, name, *([] if written is None else [written])]), place)
    assert (got, type(got)) == (value, type(value) if not isinstance(value, Path) else type(Path()))


@pytest.mark.parametrize(
    ("name", "value"),
    [("--stage", "sideways"), ("--precision", "fp8"), ("--base-bits", "3"), ("--rank", "x")],
)
def test_a_value_that_there_is_not_is_refused(parser, capsys, name, value):
    with pytest.raises(SystemExit):
        parser.parse_args([*NEEDED, name, value])
    assert name in capsys.readouterr().err


def test_help_names_every_option_once_and_begins_with_what_most_need(parser):
    text = parser.format_help()
    listed = [
        word for line in text.splitlines() for word in re.findall(r"^  (?:-\w[^-]*, )?(--[\w-]+)", line)
    ]
    assert sorted(set(listed)) == sorted(["--help", "--out", "--speech", *(row[0] for row in OPTIONS)])
    assert len(listed) == len(set(listed))
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert headings[2:] == [
        "what most runs need", "what is trained", "learning rates and loss", "speech", "memory and speed",
        "evaluations and checkpoints",
    ]  # fmt: skip
    first = text[text.index("what most runs need") : text.index("what is trained")]
    assert all(name in first for name in ("--out", "--speech", "--dev", "--teacher", "--minutes", "--steps"))


def test_what_is_trained_and_heard_comes_from_the_words(parser):
    plan = plan_from(parser.parse_args([*NEEDED, "--steps", "1", "--train", "projector, encoder"]))
    assert plan.train == ("projector", "encoder")
    plan = plan_from(parser.parse_args([*NEEDED, "--steps", "1", "--variants", "2", "--speed", "0.2"]))
    assert plan.augmentation == Augmentation(variants=2, speed=0.2)
    plan = plan_from(parser.parse_args([*NEEDED, "--steps", "1", "--no-augmentation", "--variants", "2"]))
    assert plan.augmentation == Augmentation.none()


def test_an_alphabet_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="not UTF-8"):
        HealingPlan(steps=1, stage="ctc-head", alphabet="a\udcffb")
