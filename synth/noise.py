"""Noise of several colors."""

from __future__ import annotations

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE

NOISES = ("white", "pink", "brown", "hum")


def colored_noise(count: int, color: str, rng: np.random.Generator) -> Float32:
    """(count,) float32 of unit RMS; `color` is one of `NOISES`."""
    if color == "hum":
        time = np.arange(count) / SAMPLE_RATE
        base = rng.choice([50.0, 60.0, 100.0, 120.0])
        waves = [np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6.3)) / k for k in (1, 2, 3, 5, 8)]
        samples = np.sum(waves, axis=0) + 0.05 * rng.standard_normal(count)
    else:
        samples = rng.standard_normal(count)
        if color != "white":
            spectrum = np.fft.rfft(samples)
            frequency = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 20.0)
            spectrum /= frequency ** (0.5 if color == "pink" else 1.0)
            samples = np.fft.irfft(spectrum, count)
    return (samples / (np.sqrt(np.mean(np.square(samples))) + 1e-12)).astype(np.float32)
