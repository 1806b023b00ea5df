"""Kaldi's filter banks against kaldi-native-fbank and transformers, and frames that are stacked."""

from __future__ import annotations

import numpy as np
import pytest

from prunella.device_runtime.bundle import FeatureSpec
from prunella.device_runtime.sound.fbank import fbank
from prunella.device_runtime.sound.features import features, stacked

KALDI = FeatureSpec(kind="fbank", min_samples=400, multiple=1, extra=0)
PHI4 = FeatureSpec(
    kind="fbank",
    multiple=1,
    extra=0,
    low_hertz=0,
    high_hertz=7_690,
    gain=32_768,
    floor=1,
    remove_offset=False,
)


def noise(count: int) -> np.ndarray:
    samples = 0.1 * np.random.default_rng(count).standard_normal(count) + 0.02
    return (samples * np.linspace(0.1, 1, count)).astype(np.float32)


@pytest.mark.parametrize("count", [400, 559, 560, 16_000, 16_123])
@pytest.mark.parametrize("bins", [80, 64])
def test_they_are_kaldis(count, bins):
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hamming"
    options.mel_opts.num_bins = bins
    options.energy_floor = 1.0
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(16_000, noise(count).tolist())
    computer.input_finished()
    expected = np.array([computer.get_frame(row) for row in range(computer.num_frames_ready)]).T
    spec = FeatureSpec(kind="fbank", num_mel_bins=bins, multiple=1, extra=0)
    found = fbank(noise(count), spec)
    assert found.shape == expected.shape == (bins, spec.valid_frames(count))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("count", [400, 16_123])
def test_other_ends_gains_and_floors_are_transformers(count):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.Phi4MultimodalFeatureExtractor()
    heard = extractor(noise(count), sampling_rate=16_000, return_tensors="np")["audio_input_features"][0].T
    found, valid = features(noise(count), PHI4)
    assert valid == found.shape[1] == heard.shape[1]
    np.testing.assert_allclose(found, heard, atol=1e-4)


def test_short_audio_is_padded_to_a_window_or_refused():
    found, valid = features(noise(100), KALDI)
    assert found.shape == (80, 1) and valid == 1
    with pytest.raises(ValueError, match="n >= 400"):
        fbank(noise(399), KALDI)


@pytest.mark.parametrize("count", [1, 5, 6, 7, 12, 13, 100])
def test_frames_are_stacked_as_funasr_does(count):
    frames = np.random.default_rng(0).standard_normal((3, count)).astype(np.float32)
    left = np.concatenate([np.repeat(frames[:, :1], 3, 1), frames, np.repeat(frames[:, -1:], 9, 1)], 1)
    expected = np.stack([left[:, at : at + 7].T.reshape(-1) for at in range(0, count, 6)], 1)
    np.testing.assert_array_equal(stacked(frames, 7, 6), expected)
    assert stacked(frames, 1, 1) is frames


def test_as_many_frames_as_the_spec_says():
    spec = FeatureSpec(kind="fbank", min_samples=400, multiple=1, extra=0, stack=7, stack_step=6)
    for count in (10, 400, 1_360, 1_520, 16_000, 29_999):
        found, valid = features(noise(count), spec)
        assert found.shape == (spec.width, valid) == (560, spec.valid_frames(count))
