"""What the voice examples do with text; the microphone and the model have tests of their own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from prunella.device_runtime.decoding.phrase_grammar import read_phrases

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_command_of_the_assistant_does_something():
    assistant = load("voice_assistant/assistant.py")
    phrases = read_phrases(assistant.COMMANDS)
    assert len({phrase.label for phrase in phrases}) >= 12
    home = assistant.Home()
    try:
        answers = {phrase.text: home.act(phrase.label, dict(phrase.slots)) for phrase in phrases}
    finally:
        home.cancel_timer()
    assert all(answers.values())
    assert answers["what is forty two plus seven"] == "42 plus 7 is 49."
    assert answers["set the hall light to thirty percent"] == "The hall light is at 30 percent."
    assert home.ended


def test_home_assistants_list_can_be_read():
    texts = {phrase.text for phrase in read_phrases(EXAMPLES / "home_assistant" / "commands.txt")}
    assert {"turn on the kitchen light", "set a timer for ten minutes", "never mind"} <= texts


@pytest.mark.parametrize(
    ("said", "before", "written"),
    [
        ("dear anna comma new line thank you full stop see you", "", "Dear anna,\nThank you. See you"),
        ("and more", "See you", " and more"),
        ("and more", "See you.", " And more"),
        ("full stop", "See you", "."),
        ("new paragraph next", "See you.", "\n\nNext"),
        ("a commander", "x", " a commander"),
        ("", "x", ""),
    ],
)
def test_dictation_writes_marks_and_capitals(said, before, written):
    assert load("dictation/dictate.py").write_out(said, before) == written
