import copy
import importlib
import importlib.metadata
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunella.cli import main
from prunella.device_runtime.base.cores import physical_cores
from prunella.device_runtime.base.errors import AudioError, EngineError, UsageError
from prunella.device_runtime.sound.audio import load_audio
from prunella.device_runtime.transcript import DecodeOptions
from prunella.evaluation import systems
from prunella.evaluation.manifest import read_manifest
from prunella.evaluation.systems import open_system, system_kind
from prunella.evaluation.word_errors import count_errors
from prunella.opener_registry import OPENERS

pytestmark = pytest.mark.model

CLIPS = Path(__file__).parents[2] / "examples" / "clips"


def test_kinds(tmp_path):
    assert system_kind("whisper-tiny.en") == "baseline"
    assert system_kind("reference") == "model"
    assert system_kind("fixie-ai/ultravox-v0_5") == "model"
    assert system_kind(str(tmp_path)) == "model"
    (tmp_path / "bundle.json").write_text("{}")
    assert system_kind(str(tmp_path)) == "bundle"
    for path in ("./none", "/none", "a/b/c", str(tmp_path / "bundle.json")):
        with pytest.raises(UsageError, match="no bundle or model folder"):
            system_kind(path)


def opened_by(monkeypatch, opener):
    monkeypatch.setitem(OPENERS, "model", replace(OPENERS["model"], open=opener))


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    opened_by(monkeypatch, lambda name, threads: importlib.import_module("not_installed_anywhere"))
    with pytest.raises(EngineError, match=r"needs not_installed_anywhere: pip install -e .*\[build\]"):
        open_system("reference")


class Configurable:
    def __init__(self, name, threads=None):
        self.options = DecodeOptions()
        self.threads = threads
        self.beams = None

    def with_options(self, *, beams, guards):
        other = copy.copy(self)
        other.beams, other.options = beams, DecodeOptions(guards=guards is not False)
        return other


def test_options_reach_the_system_and_its_fingerprint(monkeypatch, tmp_path):
    opened_by(monkeypatch, Configurable)
    plain, unguarded = open_system(str(tmp_path)), open_system(str(tmp_path), guards=False, threads=3)
    assert plain.system.options.guards and not unguarded.system.options.guards
    assert unguarded.system.threads == 3
    assert plain.fingerprint != unguarded.fingerprint
    two, four = open_system(str(tmp_path), beams=2), open_system(str(tmp_path), beams=4)
    assert (plain.system.beams, two.system.beams, four.system.beams) == (None, 2, 4)
    assert len({one.fingerprint for one in (plain, two, four)}) == 3
    (tmp_path / "config.json").write_text(json.dumps({"changed": True}))
    changed = open_system(str(tmp_path))
    assert changed.fingerprint != plain.fingerprint
    assert changed.disk_bytes == (tmp_path / "config.json").stat().st_size
    assert open_system(str(tmp_path), threads=0).system.threads == physical_cores()
    for threads in (-1, 10**4):
        with pytest.raises(UsageError, match="threads are not possible"):
            open_system(str(tmp_path), threads=threads)
    for beams in (-1, 17):
        with pytest.raises(UsageError, match="beams are not possible"):
            open_system(str(tmp_path), beams=beams)


def test_a_language_reaches_the_system_and_its_fingerprint(monkeypatch, tmp_path):
    class Told(Configurable):
        language = None

        def with_language(self, language):
            other = copy.copy(self)
            other.language = language
            return other

    opened_by(monkeypatch, Told)
    plain, german = open_system(str(tmp_path)), open_system(str(tmp_path), language="de")
    assert (plain.system.language, german.system.language) == (None, "de")
    assert plain.fingerprint != german.fingerprint != open_system(str(tmp_path), language="en").fingerprint
    opened_by(monkeypatch, Configurable)
    assert open_system(str(tmp_path)).fingerprint == plain.fingerprint
    with pytest.raises(UsageError, match="takes no language"):
        open_system(str(tmp_path), language="de")


@pytest.mark.parametrize("changed", ["prunella", "torch"])
def test_records_of_another_version_are_not_taken(monkeypatch, tmp_path, changed):
    opened_by(monkeypatch, Configurable)
    before = open_system(str(tmp_path)).fingerprint
    assert open_system(str(tmp_path)).fingerprint == before
    if changed == "prunella":
        monkeypatch.setattr(systems, "__version__", "0.0.0")
    else:
        real = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: "0.0.0" if name == changed else real(name)
        )
    assert open_system(str(tmp_path)).fingerprint != before


def test_the_second_system_is_looked_for_before_the_first_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "prunella.evaluation.evaluate.open_system", lambda *given, **named: pytest.fail("opened")
    )
    (tmp_path / "clips.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1, "text": "a"}\n')
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text("{}")
    speech = ["--speech", str(tmp_path / "clips.jsonl")]
    assert main(["eval", str(tmp_path), str(tmp_path / "brokn"), *speech]) == 2
    assert f"did you mean '{tmp_path / 'broken'}'?" in capsys.readouterr().err
    assert main(["eval", str(tmp_path), str(tmp_path / "broken"), *speech]) == 1
    assert "schema version" in capsys.readouterr().err


def test_a_name_that_stands_for_other_weights_is_another_system(monkeypatch, tmp_path):
    opened_by(monkeypatch, Configurable)
    monkeypatch.setitem(OPENERS, "model", replace(OPENERS["model"], find=lambda name: tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"old")
    before = open_system("reference").fingerprint
    assert open_system("reference").fingerprint == before
    (tmp_path / "model.safetensors").write_bytes(b"newer")
    assert open_system("reference").fingerprint != before


def test_evaluation_does_not_load_torch():
    import subprocess

    code = (
        "import sys, prunella.evaluation.evaluate, prunella.benchmark.bench, prunella.benchmark.measure;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_whisper_hears_a_clip():
    from prunella.evaluation.whisper_baseline import WhisperBaseline

    opened = open_system("whisper-tiny.en")
    utterance = next(u for u in read_manifest(CLIPS / "evaluation.jsonl").utterances if "0870" in u.id)
    samples = load_audio(utterance.audio)
    transcript = opened.system.transcribe(samples)
    assert count_errors(utterance.text, transcript.text).words.errors <= 1
    assert transcript.timings.audio == pytest.approx(len(samples) / 16_000)
    assert transcript.timings.total > 0
    assert transcript.finish_reason == "eos"
    # The longest cap there is (one 30 s window) must be within what the library accepts.
    assert opened.system.transcribe(np.pad(samples, (0, 32 * 16_000 - len(samples)))).text
    assert transcript.to_json()["engine"] == "faster-whisper-int8"
    assert opened.disk_bytes > 75_000_000
    short = DecodeOptions(max_tokens_per_second=0, extra_tokens=3)
    capped = WhisperBaseline(opened.system.path, options=short).transcribe(samples)
    assert capped.finish_reason == "length"
    assert len(capped.tokens) == 3
    with pytest.raises(AudioError):
        opened.system.transcribe(samples[:0])


def test_a_bundle_can_be_opened_with_another_engine(tmp_path):
    (tmp_path / "bundle.json").write_text("{}")
    folder = str(tmp_path)
    assert systems.split_engine(f"{folder}@mtmd") == (folder, "mtmd")
    assert systems.split_engine(folder) == (folder, None)
    assert systems.split_engine("someone/model@revision") == ("someone/model@revision", None)
    assert systems.split_engine("someone/model@trimmed") == ("someone/model", "trimmed")
