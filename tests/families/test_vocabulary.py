"""Words that are likely to be said, in the prompt of a model that has a place for them."""

from __future__ import annotations

import pytest
import torch
from tiny_families import FAMILIES, stock_features, write_tiny

import prunella.cli
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.opening import open_transcriber
from prunella.evaluation.manifest import read_manifest
from prunella.export.export import export
from prunella.speech_llm import load
from prunella.speech_llm.stock import assembled

WORDS = "Kubernetes, Grafana, søndag"
# A system turn always, as the family's own template has it.
TEMPLATE = """{%- set told = namespace(words='') -%}
{%- for turn in messages if turn['role'] == 'system' -%}
{%- for piece in turn['content'] -%}{%- set told.words = told.words + piece['text'] -%}{%- endfor -%}
{%- endfor -%}
{{ '<|im_start|>system\n' + told.words + '<|im_end|>\n' -}}
{{ '<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n' -}}
{{ '<|im_start|>assistant\n' -}}"""


@pytest.fixture(scope="module", params=["the usual prompt", "the folder's template"])
def folder(request, tmp_path_factory):
    made = write_tiny("qwen3_asr", tmp_path_factory.mktemp("vocabulary") / "qwen3_asr")
    if request.param == "the folder's template":
        (made / "chat_template.jinja").write_text(TEMPLATE)
    return made


@pytest.fixture(scope="module")
def bundle(folder):
    return export(load(folder), "x86-cpu", folder.parent / "bundle", recipe="fp32").path


def test_the_prompt_is_as_if_written_whole(folder):
    model = load(folder)
    assert model.prompt.takes_vocabulary
    ids = tuple(model.tokenizer(WORDS, add_special_tokens=False)["input_ids"])
    told = model.prompt.with_vocabulary(WORDS, ids)
    assert told.before_audio == f"<|im_start|>system\n{WORDS}<|im_end|>\n<|im_start|>user\n<|audio_start|>"
    assert list(told.before_ids) == model.tokenizer(told.before_audio, add_special_tokens=False)["input_ids"]
    assert told.with_vocabulary("", ()) == model.prompt


def test_a_bundle_that_is_told_words_says_what_stock_generate_says(folder, bundle, noise_manifest):
    model = load(folder)
    stock = assembled(model)
    plain, told = (
        open_transcriber(bundle, threads=1, vocabulary=words).with_options(guards=False)
        for words in ("", f" {WORDS}\n")
    )
    differ = 0
    for utterance in read_manifest(noise_manifest).utterances[:3]:
        samples = utterance.load()
        found = told.transcribe(samples).segments[0]
        heard = stock_features("qwen3_asr", samples)
        count = model.config.encoder_frames(int(heard[FAMILIES["qwen3_asr"].mask].sum()))
        before = f"<|im_start|>system\n{WORDS}<|im_end|>\n<|im_start|>user\n<|audio_start|>"
        text = f"{before}{'<|audio_pad|>' * count}<|audio_end|><|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        said = stock.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(found.tokens),
            do_sample=False,
            **heard,
        )
        assert list(found.tokens) == said[0, ids.shape[1] :].tolist()[: len(found.tokens)]
        differ += found.tokens != plain.transcribe(samples).segments[0].tokens
    assert differ  # the words are heard


def test_words_that_are_commands_or_too_many_are_refused(bundle):
    with pytest.raises(UsageError, match=r"<\|im_end\|>"):
        open_transcriber(bundle, vocabulary="a <|im_end|> b")
    with pytest.raises(UsageError, match="not UTF-8"):
        open_transcriber(bundle, vocabulary="a\udcffb")
    with pytest.raises(UsageError, match="has room for"):
        open_transcriber(bundle, vocabulary="word " * 2_000)


def test_a_model_without_a_place_for_words_says_so(tmp_path, capsys):
    model = load(write_tiny("qwen2_audio", tmp_path / "qwen2_audio"))
    assert not model.prompt.takes_vocabulary
    export(model, "x86-cpu", tmp_path / "bundle", recipe="fp32")
    assert (
        prunella.cli.main(["transcribe", str(tmp_path / "bundle"), "no.wav", "--vocabulary", "Grafana"]) == 2
    )
    assert "takes no vocabulary" in capsys.readouterr().err
