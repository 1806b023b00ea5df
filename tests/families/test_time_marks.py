"""Seconds among the audio tokens: where MOSS-Transcribe-Diarize's own processor puts them, on every engine, in every batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_families import sound, stock_extractor, write_tiny

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.decoding.time_marks import with_time_marks
from prunella.device_runtime.transcript import Turn
from prunella.speech_llm import load
from prunella.speech_llm.batches import PositionClass, SpeechExample, speech_batch
from prunella.speech_llm.torch_engine import model_features, model_transcriber

FAMILY = "moss_transcribe_diarize"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(FAMILY, tmp_path_factory.mktemp("marks") / FAMILY)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.mark.parametrize("seconds", [0.3, 1.92, 1.93, 2.0, 5.3, 29.5])
def test_they_are_where_the_processor_puts_them(model, seconds):
    transformers = pytest.importorskip("transformers")
    processor = transformers.MossTranscribeDiarizeProcessor(stock_extractor(FAMILY), model.tokenizer)
    prompt, samples = model.prompt, sound(seconds)
    text = f"{prompt.before_audio}<|audio_pad|>{prompt.after_audio}"
    theirs = processor(text=text, audio=[samples], sampling_rate=16_000, return_tensors="pt")["input_ids"][
        0
    ].tolist()
    count = model.config.audio_tokens(model.config.encoder_frames(model_features(model, samples)[1]))
    assert [*prompt.before_ids, *prompt.audio_span(count, 4), *prompt.after_ids] == theirs
    assert prompt.positions(count) == len(theirs)


def test_the_saved_processor_says_how_many_there_are(folder, tmp_path):
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    settings = tmp_path / "processor_config.json"
    settings.write_text(json.dumps({"time_marker_every_seconds": 5}))
    marks = load(tmp_path).prompt.time_marks
    assert [(mark.after, mark.text) for mark in marks[:2]] == [(62, "5"), (124, "10")]
    settings.write_text(json.dumps({"time_marker_every_seconds": 0}))
    assert load(tmp_path).prompt.time_marks == ()
    settings.write_text(json.dumps({"time_marker_every_seconds": "often"}))
    with pytest.raises(CheckpointError, match=r"processor_config\.json cannot be used"):
        load(tmp_path)


@torch.inference_mode()
def test_a_batch_has_them_as_prompt(model):
    examples = []
    for seconds in (2.6, 4.2):
        heard, valid = model_features(model, sound(seconds))
        examples.append(SpeechExample(heard, (9, 30, 2), valid))
    batch = speech_batch(model, examples)
    for row, example in enumerate(examples):
        assert int(batch.is_token[row].sum()) == example.length(model) - 1
        at = len(model.prompt.before_ids) + 25
        assert batch.position_class[row, at - 1 : at + 2].tolist() == [
            PositionClass.AUDIO,
            PositionClass.PROMPT,
            PositionClass.AUDIO,
        ]
        mark = model.embed_tokens(torch.tensor(model.prompt.time_marks[0].ids))[0]
        torch.testing.assert_close(batch.inputs_embeds[row, at], mark)


def test_rows_without_any_are_left_alone(model):
    rows = np.zeros((24, 64), np.float32)
    assert with_time_marks(rows, model.prompt, lambda ids: np.ones((len(ids), 64), np.float32)) is rows


def test_speakers_and_times_reach_the_transcript(model, monkeypatch):
    said = "[0.10][S01]Yes.[0.50][0.60][S02]No.[9.00]"
    tokens = model.tokenizer(said, add_special_tokens=False)["input_ids"]
    transcriber = model_transcriber(model).with_options(guards=False)
    engine = transcriber.engine
    steps = iter([*tokens, model.prompt.eos_ids[0]])

    def next_row(*_):
        row = np.zeros(model.view.vocab_size, np.float32)
        row[next(steps)] = 1.0
        return row

    monkeypatch.setattr(engine, "start", next_row)
    monkeypatch.setattr(engine, "step", next_row)
    found = transcriber.transcribe(sound(1.2))
    assert found.text == "Yes. No."
    assert found.turns == (Turn("S01", 0.1, 0.5, "Yes."), Turn("S02", 0.6, 1.2, "No."))
    assert found.to_json()["segments"][0]["turns"][1]["speaker"] == "S02"
