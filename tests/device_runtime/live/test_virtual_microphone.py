"""`prunella listen` through PortAudio: real speech, a PulseAudio null sink, and the example script that judges it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.native

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples" / "virtual_microphone.py"
CLIP = ROOT / "examples" / "clips" / "evaluation" / "librivox_0880.flac"


def load_script():
    spec = importlib.util.spec_from_file_location("virtual_microphone", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_real_speech_through_a_real_device_unplugged_in_between(reference_bundle):
    if reason := load_script().missing_parts():
        pytest.skip(f"no virtual microphone here: {reason}")
    done = subprocess.run(
        [sys.executable, SCRIPT, reference_bundle, CLIP, "--unplug"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    clip, summary = (json.loads(line) for line in done.stdout.splitlines())
    assert clip["worst_correlation"] > 0.98
    assert clip["texts"] == clip["file_path_texts"]
    assert " ".join(clip["texts"]).startswith("he was not")
    assert summary["heard_after_unplug"]
    assert summary["dropped_samples"] > 0, "the time without a microphone was not counted"


def test_the_judge_sees_missing_and_repeated_samples():
    from prunella.device_runtime.sound.audio import load_audio

    judge = load_script().find_clip
    clip = load_audio(CLIP)
    around = 0.001 * np.random.default_rng(0).standard_normal((2, 8_000)).astype(np.float32)
    start, correlation, shift = judge(clip, np.concatenate([around[0], 0.7 * clip, around[1]]))
    assert (start, shift) == (8_000, 0)
    assert correlation > 0.999
    for damaged in (
        np.concatenate([clip[:20_000], clip[20_100:]]),
        np.concatenate([clip[:20_000], clip[19_900:]]),
        np.concatenate([clip[:20_000], np.zeros(1_600, np.float32), clip[21_600:]]),
    ):
        _, correlation, shift = judge(clip, np.concatenate([around[0], damaged, around[1]]))
        assert correlation < 0.9 or shift > 0
