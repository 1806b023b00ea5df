"""Silero on real speech and on what is not speech, behind its gate."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from prunella.benchmark.live.stream import not_speech
from prunella.device_runtime.sound.audio import load_audio
from prunella.device_runtime.sound.vad import SileroVad

CLIP = Path(__file__).parents[3] / "examples" / "clips" / "evaluation" / "librivox_0880.flac"


def judge(vad, samples):
    return np.array([vad(samples[begin : begin + 512]) for begin in range(0, len(samples) - 511, 512)])


def test_speech_is_found_between_silences():
    hush = 0.0005 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    probabilities = judge(SileroVad(), np.concatenate([hush, load_audio(CLIP), hush]))
    assert np.mean(probabilities[35:120] > 0.5) > 0.8
    assert probabilities[:28].max() < 0.3
    assert probabilities[-20:].max() < 0.3


def test_noise_tones_and_clicks_are_not_speech():
    vad = SileroVad()
    for kind, blocks in groupby(not_speech(48.0, seed=5), key=lambda pair: pair[0]):
        vad.reset()
        assert judge(vad, np.concatenate([block for _, block in blocks])).max() < 0.5, kind


def test_what_lies_below_the_gate_is_silence_and_forgets_the_stream():
    samples = load_audio(CLIP)
    assert judge(SileroVad(gate_dbfs=0.0), samples).max() == 0
    vad = SileroVad()
    judge(vad, samples[:20_000])
    assert vad(np.full(512, 1e-4, np.float32)) == 0
    fresh = SileroVad()
    loud = samples[int(np.argmax(np.abs(samples) > 0.25)) :]  # no gain in either from the first frame on
    np.testing.assert_array_equal(judge(vad, loud), judge(fresh, loud))


@pytest.mark.parametrize("peak_dbfs", [-45, -50])
def test_quiet_speech_is_found_as_loud_speech_is(peak_dbfs):
    loud = load_audio(CLIP)
    quiet = (loud * 10 ** (peak_dbfs / 20) / np.abs(loud).max()).astype(np.float32)
    expected = judge(SileroVad(), loud) > 0.5
    assert np.mean((judge(SileroVad(), quiet) > 0.5) == expected) > 0.9


@pytest.mark.parametrize("peak_dbfs", [-40, -45])
def test_quiet_speech_is_found_behind_loud_speech(peak_dbfs):
    """Somebody by the microphone, and after two seconds somebody at the other end of the room."""
    loud = load_audio(CLIP)
    loud = 0.9 * loud / np.abs(loud).max()
    alone = judge(SileroVad(), loud) > 0.5
    quiet = (loud * 10 ** (peak_dbfs / 20) / 0.9).astype(np.float32)
    lead = np.concatenate([loud, np.zeros(32_000 + -len(loud) % 512, np.float32)])
    behind = (
        judge(SileroVad(), np.concatenate([lead[: len(lead) // 512 * 512], quiet]))[len(lead) // 512 :] > 0.5
    )
    assert np.mean(behind == alone) > 0.85


def test_noise_behind_loud_speech_is_not_speech():
    loud, rng = load_audio(CLIP), np.random.default_rng(2)
    loud = loud / np.abs(loud).max()
    for level in (-70, -55, -40):
        hush = 10 ** (level / 20) * rng.standard_normal(64_000).astype(np.float32)
        assert judge(SileroVad(), np.concatenate([loud, hush]))[-115:].max() < 0.5


def test_quiet_noise_tones_and_clicks_are_not_speech():
    vad = SileroVad()
    for kind, blocks in groupby(not_speech(48.0, seed=5), key=lambda pair: pair[0]):
        vad.reset()
        assert judge(vad, 0.01 * np.concatenate([block for _, block in blocks])).max() < 0.5, kind


def test_streams_do_not_share_memory():
    samples = load_audio(CLIP)
    expected = judge(SileroVad(), samples)
    one, other = SileroVad(), SileroVad()
    got = []
    for begin in range(0, len(samples) - 511, 512):
        got.append(one(samples[begin : begin + 512]))
        other(np.full(512, 0.1, np.float32))
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("together", [1, 3, 200])
def test_frames_are_judged_together_as_one_after_the_other(together):
    """Also where silence between them clears the memory."""
    loud = load_audio(CLIP)
    loud = loud[: len(loud) // 512 * 512]
    hush = np.zeros(4_096, np.float32)
    frames = np.concatenate([hush, loud, hush, 0.01 * loud, hush]).reshape(-1, 512)
    alone, many = SileroVad(), SileroVad()
    expected = np.array([alone(frame) for frame in frames])
    found = [many.judge(frames[start : start + together]) for start in range(0, len(frames), together)]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
