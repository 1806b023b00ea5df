"""`prunella transcribe` and `prunella info`: what goes to stdout, what to stderr, and the exit codes."""

from __future__ import annotations

import json

import pytest
import soundfile

from prunella import cli
from prunella.device_runtime import options
from prunella.device_runtime.bundle import MANIFEST_NAME, AudioSpec
from prunella.device_runtime.opening import open_transcriber


@pytest.fixture
def clips(tmp_path, tone):
    for name in ("one.wav", "two.flac"):
        soundfile.write(tmp_path / name, tone, 16_000)
    (tmp_path / "letter.wav").write_text("not audio " * 100)
    return [str(tmp_path / name) for name in ("one.wav", "letter.wav", "two.flac")]


@pytest.fixture
def speaking(monkeypatch, scripted):
    """`prunella transcribe` with an engine that says these texts."""

    def use(*texts):
        transcriber = scripted(*texts)
        monkeypatch.setattr(options, "open_transcriber", lambda *_, **__: transcriber)
        return transcriber

    return use


def test_one_file_is_text_alone(speaking, clips, capsys):
    speaking("go forward")
    assert cli.main(["transcribe", "bundle", clips[0]]) == 0
    captured = capsys.readouterr()
    assert captured.out == "go forward\n"
    assert "real-time factor" in captured.err and captured.err.count("\n") == 1


def test_a_bad_file_does_not_stop_the_others(speaking, clips, capsys):
    speaking("go forward", "and stop")
    assert cli.main(["transcribe", "bundle", *clips]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{clips[0]}\tgo forward\n{clips[2]}\tand stop\n"
    assert "letter.wav is not audio" in captured.err


def test_json_is_one_object_per_file(speaking, clips, capsys):
    speaking("go forward", "and stop")
    assert cli.main(["transcribe", "bundle", "--json", *clips]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == clips
    assert rows[0]["text"] == "go forward" and rows[2]["text"] == "and stop"
    assert "not audio" in rows[1]["error"] and "text" not in rows[1]
    assert {"encode", "prefill", "decode", "first_token", "real_time_factor"} <= rows[0]["timings"].keys()


def test_guards_are_turned_off(speaking, clips, capsys):
    speaking("go go go")
    assert cli.main(["transcribe", "bundle", clips[0], "--no-guards"]) == 0
    assert capsys.readouterr().out == "go go go\n"


def test_a_broken_bundle_is_one_line(write_bundle, clips, capsys):
    folder = write_bundle()
    (folder / "tokenizer.json").write_text("{}")
    assert cli.main(["transcribe", str(folder), clips[0]]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "tokenizer.json" in captured.err
    assert cli.main(["transcribe", str(folder), clips[0], "--engine", "nonsense"]) == 2


def test_info_says_what_is_inside(write_bundle, capsys):
    folder = write_bundle()
    assert cli.main(["info", str(folder)]) == 0
    text = capsys.readouterr().out
    for part in (
        "tiny",
        "ultravox",
        "x86-cpu",
        "int4",
        "2 layers",
        "13:16",
        "31.7",
        "33.1",
        "decoder_model_merged.onnx",
        "no CTC head",
    ):
        assert part in text, part
    lettered = write_bundle("lettered", audio=AudioSpec(ctc_alphabet=" abc"))
    assert cli.main(["info", str(lettered)]) == 0
    assert "CTC head over ' abc', weighed 0.2" in capsys.readouterr().out
    cuts = [{"blocks": ["2:4"], "layers_after": 4}, {"blocks": ["1:2", "4:5"], "loss_full": None}]
    sittings = [{"stage": "transcript", "steps": 100, "minutes": 30.0}] * 40 + [{"stage": "average"}]
    fewer = [{"tokens_before": 9, "tokens_after": 7, "kept_by": "texts"}]
    history = {"name": "two-engines", "pruning": cuts, "healing": sittings, "vocabulary": fewer}
    assert cli.main(["info", str(write_bundle("cut", provenance=history))]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["pruning", "layers 2:4 taken out, 4 of ? left; chosen as ?"] in lines
    assert ["pruning", "layers 1:2 4:5 taken out, ? of ? left; chosen as ?"] in lines
    assert ["pruning", "7 of 9 tokens left; kept by texts"] in lines
    assert ["healing", "40 x transcript, average; 4,000 steps, 20.0 h; `--json` tells all of them"] in lines
    assert cli.main(["info", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["provenance"]["wer"]["after"] == 33.1
    assert values["files"]["tokenizer.json"]["bytes"] == (folder / "tokenizer.json").stat().st_size


def test_info_refuses_what_is_not_intact(write_bundle, tmp_path, capsys):
    folder = write_bundle()
    graph = folder / "onnx" / "decoder_model_merged.onnx"
    graph.write_bytes(graph.read_bytes()[::-1])
    assert cli.main(["info", str(folder)]) == 1
    assert "corrupt" in capsys.readouterr().err
    (folder / MANIFEST_NAME).unlink()
    (folder / "config.json").write_text("{}")
    assert cli.main(["info", str(folder)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "is a checkpoint" in captured.err and "prunella export" in captured.err
    assert cli.main(["info", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_the_encoders_memory_is_not_planned_for_each_length(reference_bundle):
    """A plan takes up to 130 MB more as soon as a length comes twice, as in long recordings."""
    encoder = open_transcriber(reference_bundle).engine.encoder
    assert not encoder.session.get_session_options().enable_mem_pattern
