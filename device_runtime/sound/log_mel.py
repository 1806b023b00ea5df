"""Whisper's log-mel spectrogram in numpy, over the true length of the audio.

Equal to transformers' `WhisperFeatureExtractor(padding="longest", truncation=False)` within 1e-4; the device and the
build machine both use this function, so that a model never sees other features than it was trained on.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.blas import one_thread

SAMPLE_RATE = 16_000
N_FFT = SAMPLE_RATE // 40  # a window of 25 ms
HOP_LENGTH = SAMPLE_RATE // 100  # a frame every 10 ms
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
POWER_FLOOR = 1e-10
DYNAMIC_RANGE = 8.0  # decades of power kept below the loudest bin

# Slaney's mel scale: linear up to 1 kHz, logarithmic above.
_MEL_BREAK = 1_000.0
_HERTZ_PER_MEL = 200.0 / 3.0
_MEL_LOG_STEP = np.log(6.4) / 27.0


def log_mel(samples: npt.ArrayLike, num_mel_bins: int = 80) -> Float32:
    """Log-mel spectrogram.

    Args:
        samples: (n,) mono audio at 16 kHz in [-1, 1], n > 200; what lies beyond the last whole frame is left out.
        num_mel_bins: 80, or 128 for Whisper large-v3.

    Returns:
        (num_mel_bins, n // 160) float32.

    Raises:
        ValueError: not one-dimensional, or too short for one window.
    """
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim != 1 or len(samples) <= N_FFT // 2:
        raise ValueError(f"log_mel takes (n,) samples with n > {N_FFT // 2}, got shape {samples.shape}")
    centred = np.pad(samples, N_FFT // 2, mode="reflect")
    # The frame centred on the very end is dropped, as Whisper does.
    frames = np.lib.stride_tricks.sliding_window_view(centred, N_FFT)[::HOP_LENGTH][
        : len(samples) // HOP_LENGTH
    ]
    spectrum = np.fft.rfft(frames * _window(), axis=-1)
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    with one_thread():
        mel = mel_filters(num_mel_bins) @ power.astype(np.float32, copy=False).T
    np.log10(np.maximum(mel, POWER_FLOOR, out=mel), out=mel)
    np.maximum(mel, mel.max() - DYNAMIC_RANGE, out=mel)
    mel += 4.0
    mel /= 4.0
    return mel


@functools.cache
def mel_filters(num_mel_bins: int) -> Float32:
    """Slaney's triangular filters, each of unit area → (num_mel_bins, 201) float32, read-only."""
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    top_mel = _MEL_BREAK / _HERTZ_PER_MEL + np.log(SAMPLE_RATE / 2 / _MEL_BREAK) / _MEL_LOG_STEP
    corners = _mel_to_hertz(np.linspace(0.0, top_mel, num_mel_bins + 2))
    widths = np.diff(corners)
    slopes = corners[:, None] - bins
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    filters = (triangles * (2.0 / (corners[2:] - corners[:-2]))[:, None]).astype(np.float32)
    filters.flags.writeable = False
    return filters


def _mel_to_hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    break_mel = _MEL_BREAK / _HERTZ_PER_MEL
    return np.where(
        mel < break_mel, mel * _HERTZ_PER_MEL, _MEL_BREAK * np.exp(_MEL_LOG_STEP * (mel - break_mel))
    )


@functools.cache
def _window() -> Float32:
    """Periodic Hann window, (N_FFT,)."""
    return np.hanning(N_FFT + 1)[:-1].astype(np.float32)
