"""Kaldi's log-mel filter banks in numpy: windows that lie whole within the audio, pre-emphasis, triangles in mel space.

Equal to kaldi-native-fbank and torchaudio's `compliance.kaldi.fbank` without dither within 1e-3. Families of Kaldi's tradition use it with
other ends, gains and floors, which are data (`FeatureSpec`).
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.blas import one_thread
from prunella.device_runtime.manifest import HOP_LENGTH, WINDOW_LENGTH, FeatureSpec
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE

_N_FFT = 512  # the window's length, up to a power of two
_PREEMPHASIS = 0.97
_HERTZ = 700.0  # the mel scale: 1127 ln(1 + f / 700)


def fbank(samples: npt.ArrayLike, spec: FeatureSpec) -> Float32:
    """Log-mel filter banks.

    Args:
        samples: (n,) mono audio at 16 kHz in [-1, 1], n >= 400; what lies beyond the last whole window is left out.
        spec: number, ends, gain and floor of the filters.

    Returns:
        (num_mel_bins, 1 + (n - 400) // 160) float32.

    Raises:
        ValueError: not one-dimensional, or too short for one window.
    """
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim != 1 or len(samples) < WINDOW_LENGTH:
        raise ValueError(f"fbank takes (n,) samples with n >= {WINDOW_LENGTH}, got shape {samples.shape}")
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW_LENGTH)[::HOP_LENGTH]
    frames = windows.astype(np.float64) * spec.gain
    if spec.remove_offset:
        frames -= frames.mean(axis=1, keepdims=True)
    # The first sample of a window has none before it but itself.
    frames[:, 1:] -= _PREEMPHASIS * frames[:, :-1]
    frames[:, 0] *= 1 - _PREEMPHASIS
    spectrum = np.fft.rfft(frames * np.hamming(WINDOW_LENGTH), _N_FFT, axis=-1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    filters = _filters(spec.num_mel_bins, spec.low_hertz, spec.high_hertz)
    with one_thread():
        mel = filters @ power.astype(np.float32).T
    found: Float32 = np.log(np.maximum(mel, spec.floor, out=mel), out=mel)
    return found


@functools.cache
def _filters(num_mel_bins: int, low: float, high: float) -> Float32:
    """Triangles between equal steps of the mel scale, 1 at their peaks → (num_mel_bins, 257) float32, read-only."""
    bins = _mel(np.linspace(0.0, SAMPLE_RATE / 2, _N_FFT // 2 + 1))
    corners = np.linspace(_mel(low), _mel(high), num_mel_bins + 2)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    filters.flags.writeable = False
    return filters


def _mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    mel: npt.NDArray[np.float64] = 1127.0 * np.log1p(np.asarray(hertz, np.float64) / _HERTZ)
    return mel
