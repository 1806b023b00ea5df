"""Whisper's log-mel spectrogram in numpy, over the true length of the audio, and that of its kin, on HTK's mel scale.

Equal to transformers' `WhisperFeatureExtractor(padding="longest", truncation=False)` and `GraniteSpeechFeatureExtractor`
within 1e-4; the device and the build machine both use this function, so that a model never sees other features than it was
trained on.
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
# HTK's mel scale: 2595 log10(1 + f / 700).
_HTK_MELS = 2_595.0
_HTK_HERTZ = 700.0


def log_mel(
    samples: npt.ArrayLike,
    num_mel_bins: int = 80,
    *,
    n_fft: int = N_FFT,
    mel_scale: str = "slaney",
    last_frame: bool = False,
) -> Float32:
    """Log-mel spectrogram.

    Args:
        samples: (n,) mono audio at 16 kHz in [-1, 1], n > 200; what lies beyond the last whole frame is left out.
        num_mel_bins: 80, or 128 for Whisper large-v3.
        n_fft: samples that a window of 25 ms is filled up to with zeros before its spectrum is taken.
        mel_scale: "slaney", whose filters are of unit area, or "htk", whose filters are 1 at their peaks.
        last_frame: whether the frame counts whose window is centered on the very end, which Whisper drops.

    Returns:
        (num_mel_bins, n // 160) float32, with `last_frame` one frame more.

    Raises:
        ValueError: not one-dimensional, or too short for one window.
    """
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim != 1 or len(samples) <= N_FFT // 2:
        raise ValueError(f"log_mel takes (n,) samples with n > {N_FFT // 2}, got shape {samples.shape}")
    centred = np.pad(samples, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(centred, N_FFT)[::HOP_LENGTH][
        : len(samples) // HOP_LENGTH + last_frame
    ]
    spectrum = np.fft.rfft(frames * _window(), n_fft, axis=-1)
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    with one_thread():
        mel = mel_filters(num_mel_bins, n_fft, mel_scale) @ power.astype(np.float32, copy=False).T
    np.log10(np.maximum(mel, POWER_FLOOR, out=mel), out=mel)
    np.maximum(mel, mel.max() - DYNAMIC_RANGE, out=mel)
    mel += 4.0
    mel /= 4.0
    return mel


@functools.cache
def mel_filters(num_mel_bins: int, n_fft: int = N_FFT, mel_scale: str = "slaney") -> Float32:
    """Triangular filters, see `log_mel` → (num_mel_bins, n_fft // 2 + 1) float32, read-only."""
    bins = np.linspace(0.0, SAMPLE_RATE / 2, n_fft // 2 + 1)
    htk = mel_scale == "htk"
    if htk:
        top_mel = _HTK_MELS * np.log10(1 + SAMPLE_RATE / 2 / _HTK_HERTZ)
        corners = _HTK_HERTZ * (10 ** (np.linspace(0.0, top_mel, num_mel_bins + 2) / _HTK_MELS) - 1)
    else:
        top_mel = _MEL_BREAK / _HERTZ_PER_MEL + np.log(SAMPLE_RATE / 2 / _MEL_BREAK) / _MEL_LOG_STEP
        corners = _mel_to_hertz(np.linspace(0.0, top_mel, num_mel_bins + 2))
    widths = np.diff(corners)
    slopes = corners[:, None] - bins
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    heights = 1.0 if htk else (2.0 / (corners[2:] - corners[:-2]))[:, None]
    filters: Float32 = (triangles * heights).astype(np.float32)
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
