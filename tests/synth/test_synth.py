from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunella.device_runtime.base.errors import EngineError, ManifestError, UsageError
from prunella.evaluation.manifest import read_manifest
from prunella.synth import synth, voices
from prunella.synth.synth import SynthesisPlan, speak, synthesize

PLAN = SynthesisPlan(voices=("hibari:heart",))


class Beeper:
    name = "beeper"

    def speak(self, text, rate, seed):
        if text == "hush":
            return np.zeros(0, np.float32)
        return np.sin(np.arange(round(3_000 * len(text) / rate)) * 0.2).astype(np.float32) * 0.5


@pytest.fixture
def beeper(monkeypatch):
    monkeypatch.setattr(synth, "open_voices", lambda names=(): [Beeper()])


def test_clips_and_manifest(beeper, tmp_path, capsys):
    manifest = read_manifest(synthesize(["go left", "", "hush", "stop"], tmp_path, replace(PLAN, copies=2)))
    assert [row.text for row in manifest.utterances] == ["go left", "stop"] * 2
    assert "skipped 2 sentences" in capsys.readouterr().err
    lengths = [row.duration for row in manifest.utterances]
    assert lengths[0] != lengths[2]  # copies differ


def test_reproducible():
    one, two = (speak("go", 3, PLAN, [Beeper()])[0] for _ in range(2))
    assert np.array_equal(one, two)
    assert np.abs(one).max() <= 1.0
    other, _ = speak("go", 4, PLAN, [Beeper()])
    assert len(other) != len(one)


def test_goes_on_after_a_kill(beeper, tmp_path):
    sentences = [f"number {n}" for n in range(5)]
    manifest = synthesize(sentences, tmp_path / "whole", PLAN)
    whole = manifest.read_text()
    part = tmp_path / "part"
    synthesize(sentences, part, PLAN)
    lines = whole.splitlines(keepends=True)
    (part / "manifest.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    kept = part / json.loads(lines[0])["audio_filepath"]
    before = kept.stat().st_mtime_ns
    assert synthesize(sentences, part, PLAN).read_text() == whole
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="other sentences"):
        synthesize(["something else", *sentences[1:]], part, PLAN)
    with pytest.raises(UsageError, match=r"other settings \(seed\)"):
        synthesize(sentences, part, replace(PLAN, seed=1))


def test_lines_of_the_users_own_stay_in_the_manifest(beeper, tmp_path):
    manifest = synthesize(["go left"], tmp_path, PLAN)
    with manifest.open("a") as file:
        file.write('{"audio_filepath": "mine.wav", "text": "mine"}\n')
    before = manifest.read_text()
    with pytest.raises(UsageError, match="did not write"):
        synthesize(["go left"], tmp_path, PLAN)
    assert manifest.read_text() == before


@pytest.mark.skipif(os.name == "nt", reason="a child has a parent for ever there")
def test_workers_end_with_a_killed_parent():
    program = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from prunella.synth.synth import end_with_parent
if __name__ == "__main__":
    with ProcessPoolExecutor(1, initializer=end_with_parent) as pool:
        pool.submit(print, "begun", flush=True).result()
        os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert killed.communicate(timeout=60)[0] == b"begun\n"  # the pipe's end: nobody holds it any more


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(ManifestError, match="no sentence"):
        synthesize(["", " "], tmp_path, PLAN)
    with pytest.raises(UsageError, match="write hibari:heart"):
        voices.open_voices(["robot"])
    monkeypatch.setattr(voices.shutil, "which", lambda name: None)
    with pytest.raises(EngineError, match="apt install flite"):
        voices.open_voices(["flite:slt"])


def test_hibari_speaks_through_the_verb(tmp_path, capsys):
    pytest.importorskip("hibari")
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("turn the kitchen lights on\nstop\nset a timer for ten minutes\n")
    parser = argparse.ArgumentParser()
    synth.add_arguments(parser)
    args = [
        str(sentences),
        "-o",
        str(tmp_path / "out"),
        "--voices",
        "hibari:heart",
        "--jobs",
        "2",
        "--noisy",
        "0",
    ]
    assert synth.run(parser.parse_args(args)) == 0
    manifest = read_manifest(Path(capsys.readouterr().out.strip()))
    assert len(manifest) == 3
    assert 0.8 < manifest.utterances[0].duration < 4.0
    assert {row.speaker for row in manifest.utterances} == {"hibari:heart"}


@pytest.mark.native
@pytest.mark.parametrize("program", ["flite", "espeak-ng"])
def test_programs_speak(program):
    if voices.shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    voice = "slt" if program == "flite" else "en-us"
    (one,) = voices.open_voices([f"{program}:{voice}"])
    slow, fast = (one.speak("turn the lights on", rate, 0) for rate in (0.8, 1.3))
    assert len(slow) > 1.2 * len(fast) > 0
