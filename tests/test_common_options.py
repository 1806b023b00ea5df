"""Options that several verbs have mean the same in each."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest

from prunella.cli import VERBS

WORDS = {
    "analyze": ["MODEL"],
    "prune": ["MODEL", "--drop", "1"],
    "heal": ["MODEL", "--speech", "S"],
    "synth": ["SENTENCES"],
    "export": ["MODEL", "--target", "x86-cpu"],
    "verify": ["BUNDLE", "MODEL", "--speech", "S"],
    "quantize": ["BUNDLE", "--auto"],
    "build": ["MODEL", "--target", "x86-cpu", "--drop", "1"],
    "transcribe": ["BUNDLE", "A"],
    "listen": ["BUNDLE"],
    "serve": ["BUNDLE"],
    "eval": ["SYSTEM", "--speech", "S"],
    "bench": ["SYSTEM", "--speech", "S"],
    "pack": ["BUNDLE", "--target", "x86-cpu"],
    "fit": ["MODEL", "--target", "x86-cpu"],
}


def parser(verb):
    made = argparse.ArgumentParser(prog=verb)
    importlib.import_module(VERBS[verb][0]).add_arguments(made)
    return made


def verbs_with(option):
    return [
        verb for verb in VERBS if re.search(rf"(^|[ ,]){option}\b", parser(verb).format_help(), re.MULTILINE)
    ]


@pytest.mark.parametrize("name", ["-o", "--out", "--output"])
def test_every_verb_that_writes_a_folder_is_told_where_alike(name):
    writers = verbs_with("--out")
    assert writers == ["analyze", "prune", "heal", "synth", "export", "quantize", "build", "fit", "pack"]
    for verb in writers:
        assert parser(verb).parse_args([*WORDS[verb], name, "there"]).out == "there"


def test_threads_are_counted_alike():
    counting = verbs_with("--threads")
    assert counting == ["verify", "quantize", "transcribe", "listen", "serve", "eval", "bench", "fit"]
    for verb in counting:
        words = [*WORDS[verb], *(["-o", "OUT"] if verb == "quantize" else [])]
        assert parser(verb).parse_args(words).threads is None
        assert parser(verb).parse_args([*words, "--threads", "0"]).threads == 0
        text = " ".join(parser(verb).format_help().split())
        assert "CPU threads; 0: one per physical core (default: " in text


def test_speech_is_a_manifest_everywhere():
    hearing = verbs_with("--speech")
    assert hearing == ["analyze", "prune", "heal", "verify", "quantize", "eval", "bench"]
    for verb in hearing:
        words = [word for word in WORDS[verb] if word not in ("--speech", "S")]
        words += [] if verb in ("verify", "eval", "bench") else ["-o", "OUT"]
        speech = parser(verb).parse_args([*words, "--speech", "x.jsonl"]).speech
        assert speech == (["x.jsonl"] if verb == "heal" else Path("x.jsonl"))
        assert "JSONL: audio_filepath, duration, text" in " ".join(parser(verb).format_help().split()), verb
