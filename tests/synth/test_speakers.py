from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prunella.device_runtime.base.errors import UsageError
from prunella.synth.speakers import Speaker, Spectrum, draw_speaker, in_room, spoken_by
from prunella.synth.voices import HibariVoice, open_voices

NOBODY = Speaker(1.0, 1.0, 1.0, 0.0, 0.0, 0.0, (0.0,) * 5, 0.0, 0.0)


@pytest.fixture
def spectrum():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((601, 90)).astype(np.float32) for _ in range(5)]
    pitch = np.where(np.arange(90) % 30 < 20, 200 + 40 * np.sin(np.arange(90) / 5), 0).astype(np.float32)
    return Spectrum(*parts, pitch)


def changed(spectrum, **differences):
    return spoken_by(spectrum, replace(NOBODY, **differences), np.random.default_rng(1))


def test_nobody_in_particular_changes_nothing(spectrum):
    for was, now in zip(vars(spectrum).values(), vars(changed(spectrum)).values(), strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-5)


def test_formants_move_by_the_factor(spectrum):
    peak = replace(spectrum, harmonic=-np.abs(np.arange(601) - 120)[:, None] * np.ones((1, 90), np.float32))
    assert (changed(peak, formants=1.2).harmonic.argmax(0) == 144).all()
    assert (changed(peak, formants=0.8).harmonic.argmax(0) == 96).all()


def test_pitch_and_intonation_leave_the_unvoiced_alone(spectrum):
    voiced = spectrum.pitch > 0
    lower = changed(spectrum, pitch=0.5).pitch
    np.testing.assert_allclose(lower[voiced], spectrum.pitch[voiced] / 2, rtol=1e-4)
    assert not lower[~voiced].any()
    flat = changed(spectrum, intonation=0.5).pitch
    assert flat[voiced].std() < 0.6 * spectrum.pitch[voiced].std()


def test_pace_changes_all_parts_alike(spectrum):
    lengths = {part.shape[-1] for part in vars(changed(spectrum, pace=0.3)).values()}
    assert len(lengths) == 1 and lengths != {90}


def test_a_room_adds_an_echo_and_no_length():
    click = np.zeros(8_000, np.float32)
    click[100] = 1.0
    heard = in_room(click, replace(NOBODY, room=0.3, echo=-10.0), 16_000, np.random.default_rng(0))
    assert heard.shape == click.shape and heard.dtype == np.float32
    assert 10 * np.log10(np.square(heard[101:]).sum()) == pytest.approx(-10.0, abs=0.5)
    assert not heard[:100].round(6).any()


def test_drawn_speakers_differ():
    drawn = [draw_speaker(np.random.default_rng(seed)) for seed in range(40)]
    assert len(set(drawn)) == 40
    assert min(one.pitch for one in drawn) < 0.7 < 1.1 < max(one.pitch for one in drawn)


def test_hibari_as_anybody():
    pytest.importorskip("hibari")
    (voice,) = open_voices(["hibari:heart+any"])
    assert isinstance(voice, HibariVoice) and voice.name == "hibari:heart+any"
    one, again, other = (voice.speak("stop the music", 1.0, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert len(one) != len(other) and np.isfinite(other).all() and np.abs(other).max() > 0.01
    with pytest.raises(UsageError, match="no voice 'nobody'"):
        open_voices(["hibari:nobody+any"])
