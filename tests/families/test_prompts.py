"""The prompt of a family is what its folder's chat template renders, or the usual one where the folder has none."""

from __future__ import annotations

import json

import pytest
from tiny_families import FAMILIES, tiny_tokenizer, write_tiny
from transformers import AutoTokenizer

from prunella.device_runtime.base.errors import CheckpointError
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune, save_pruned
from prunella.speech_llm import load

TEMPLATED = [name for name in FAMILIES if name != "voxtral"]  # which has a request of its own
# As processors have them: a turn is a list of pieces, and a piece of audio becomes the placeholder between its marks.
TEMPLATE = """{%- for turn in messages -%}
<|im_start|>{{ turn['role'] }}!
{% for piece in turn['content'] -%}
{%- if piece['type'] == 'audio' or 'audio_url' in piece -%}
BEFORE AUDIO AFTER
{%- elif 'text' in piece -%}
{{ piece['text'] }}
{%- endif -%}
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant!
{% endif -%}
"""
# As a text LLM's tokenizer has it: a turn is a string.
TEXT_ONLY = "{% for turn in messages %}{{ '<|im_start|>' + turn['content'] + '<|im_end|>' }}{% endfor %}"
DEAF = "{% for turn in messages %}<|im_start|>{{ turn['role'] }}<|im_end|>{% endfor %}"


@pytest.fixture(params=TEMPLATED)
def folder(request, tmp_path):
    return write_tiny(request.param, tmp_path / request.param)


def template(folder) -> str:
    audio = FAMILIES[folder.name].tokens
    marks = (*audio[1:3], "", "")
    return TEMPLATE.replace("BEFORE AUDIO AFTER", f"{marks[0]}{audio[0]}{marks[1]}")


def as_file(folder, text):
    (folder / "chat_template.jinja").write_text(text)


def as_json(folder, text):
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))


def in_tokenizer(folder, text):
    tokenizer = tiny_tokenizer(folder.name)
    tokenizer.chat_template = text
    tokenizer.save_pretrained(folder, save_jinja_files=False)


@pytest.mark.parametrize("place", [as_file, as_json, in_tokenizer])
def test_the_folders_template_is_rendered(folder, place, tmp_path):
    usual = load(folder).prompt
    place(folder, template(folder))
    prompt = load(folder).prompt
    assert prompt != usual
    assert prompt.before_audio.startswith("<|im_start|>user!\n")
    assert prompt.after_audio.endswith("<|im_end|>\n<|im_start|>assistant!\n")
    said = prompt.before_audio + FAMILIES[folder.name].tokens[0] + prompt.after_audio
    ids = (*prompt.before_ids, 4, *prompt.after_ids)
    assert tuple(AutoTokenizer.from_pretrained(folder)(said)["input_ids"]) == ids
    # A cut model is asked as the whole one was.
    pruned, report = prune(load(folder), (Block(2, 4),), bridge=False)
    save_pruned(pruned, report, tmp_path / "cut")
    assert load(tmp_path / "cut").prompt == prompt
    for name in ("chat_template.jinja", "chat_template.json"):
        assert (folder / name).exists() == (tmp_path / "cut" / name).exists()


ASKED_IN_TEXT = ("granite_speech", "granite_speech_plus")  # audio is a token of the text, which keeps it


@pytest.mark.parametrize("text", [TEXT_ONLY, DEAF])
def test_a_text_llms_template_in_the_tokenizer_is_not_asked(folder, text, tmp_path):
    usual = load(folder).prompt
    in_tokenizer(folder, text)
    asked = text is TEXT_ONLY and folder.name in ASKED_IN_TEXT
    assert (load(folder).prompt == usual) != asked
    as_file(folder, template(folder))
    rendered = load(folder).prompt
    assert rendered != usual
    pruned, report = prune(load(folder), (Block(2, 4),), bridge=False)
    save_pruned(pruned, report, tmp_path / "cut")
    assert load(tmp_path / "cut").prompt == rendered
    assert (tmp_path / "cut" / "chat_template.jinja").read_text() == template(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEAF, "has not exactly one .*drops or repeats the audio"),
        ("{{ raise_exception('no audio, please') }}", "cannot be rendered: no audio, please"),
        ("{% if %}", "cannot be rendered"),
    ],
)
def test_a_processors_template_that_is_no_use_is_refused(folder, text, message):
    as_file(folder, text)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_every_end_token_ends_an_answer_and_one_is_taught(tmp_path):
    folder = write_tiny("glmasr", tmp_path / "model")
    assert load(folder).prompt.eos_ids == (2, 0, 7)  # the tokenizer's own first
    body = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(body | {"eos_token_id": [7, 5]}))
    assert load(folder).prompt.eos_ids == (7, 5)
    (folder / "generation_config.json").unlink()
    assert set(load(folder).prompt.eos_ids) == {2, 0, 7}
