"""Many speakers out of one voice: hibari's network gives a spectrum and a pitch curve, which are those of nobody yet.

hibari (like a source-filter vocoder) keeps pitch, harmonic envelope and noise apart until the last step, so that another
length of the vocal tract, another pitch and intonation, breath and pace cost nothing. Warping the frequency axis for other
speakers: Jaitly and Hinton, Vocal Tract Length Perturbation, 2013.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve
from scipy.sparse import csr_array

from prunella.device_runtime.base.arrays import Float32

FRAME_SECONDS = 0.0125
_NEPERS_A_DB = np.log(10) / 20  # hibari's magnitudes are natural logarithms
_HIGHEST_HZ = 12_000.0
_VOICED_HZ = 40.0
_PACE_SECONDS = 0.7  # between the points at which the pace changes


@dataclass(frozen=True)
class Spectrum:
    """What hibari's network says before it becomes sound, frame by frame (12.5 ms).

    `harmonic`, `noise`, `free`: (bins, frames) float32, natural log magnitudes up to 12 kHz; `shift`, `phase`: the phases of
    the first and the last of them; `pitch`: (frames,) Hz, below 40 where nothing is voiced.
    """

    harmonic: Float32
    shift: Float32
    noise: Float32
    free: Float32
    phase: Float32
    pitch: Float32


@dataclass(frozen=True)
class Speaker:
    """How one speaker differs from the voice: factors, but where a unit is named."""

    formants: float
    pitch: float
    intonation: float  # exponent of the pitch's distance from its mean
    tilt: float  # dB an octave
    breath: float  # dB of noise
    pace: float  # natural log of how much a stretch of 0.7 s is faster or slower, standard deviation
    color: tuple[float, ...]  # dB: cosines over the frequency axis, of a throat, a microphone
    room: float  # seconds until an echo is 60 dB down; 0: no room
    echo: float  # dB of the echo against the voice


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """A man, a woman or a child, near a microphone or across a room. hibari's "heart" is a woman."""
    who = rng.random()
    low, high, short, long = (
        (0.45, 0.72, 0.80, 0.97)
        if who < 0.5
        else (0.75, 1.25, 0.92, 1.1)
        if who < 0.9
        else (1.2, 1.6, 1.06, 1.22)
    )
    return Speaker(
        formants=float(rng.uniform(short, long)),
        pitch=float(rng.uniform(low, high)),
        intonation=float(rng.uniform(0.6, 1.4)),
        tilt=float(rng.uniform(-3.0, 3.0)),
        breath=float(rng.uniform(-4.0, 5.0)),
        pace=float(rng.uniform(0.0, 0.18)),
        color=tuple(rng.normal(0.0, 2.5, 5).tolist()),
        room=float(rng.uniform(0.1, 0.6)) if rng.random() < 0.4 else 0.0,
        echo=float(rng.uniform(-20.0, -5.0)),
    )


def spoken_by(spectrum: Spectrum, speaker: Speaker, rng: np.random.Generator) -> Spectrum:
    """The same words from another throat, at another pace."""
    bins, frames = spectrum.harmonic.shape
    at = np.clip(np.arange(bins) / speaker.formants, 0, bins - 1)
    when = _paced(frames, speaker.pace, rng)
    hz = np.linspace(0.0, _HIGHEST_HZ, bins)
    octaves = np.log2(np.maximum(hz, 250.0) / 1000.0)
    waves = np.cos(np.pi * np.outer(np.arange(1, len(speaker.color) + 1), np.linspace(0, 1, bins) ** 0.5))
    color = ((speaker.tilt * octaves + np.array(speaker.color) @ waves) * _NEPERS_A_DB)[:, None]
    nearest, now = np.round(at).astype(int), np.round(when).astype(int)
    voiced = spectrum.pitch > _VOICED_HZ
    mean = float(np.exp(np.log(spectrum.pitch[voiced]).mean())) if voiced.any() else 1.0
    pitch = np.where(
        voiced, speaker.pitch * mean * (np.maximum(spectrum.pitch, 1.0) / mean) ** speaker.intonation, 0.0
    )
    return Spectrum(
        harmonic=(_between(spectrum.harmonic, at, when) + color).astype(np.float32),
        shift=_between(spectrum.shift, at, when),
        noise=(_between(spectrum.noise, at, when) + color + speaker.breath * _NEPERS_A_DB).astype(np.float32),
        free=(_between(spectrum.free, at, when) + color).astype(np.float32),
        phase=spectrum.phase[nearest][:, now],
        pitch=pitch[now].astype(np.float32),
    )


def in_room(samples: Float32, speaker: Speaker, rate: int, rng: np.random.Generator) -> Float32:
    """(n,) with the echo of the speaker's room, as long as before."""
    if not speaker.room or not len(samples):
        return samples
    times = np.arange(round(speaker.room * rate)) / rate
    echo = rng.standard_normal(len(times)) * 10 ** (-3 * times / speaker.room)
    echo *= 10 ** (speaker.echo / 20) / np.linalg.norm(echo)
    return (samples + fftconvolve(samples, echo)[: len(samples)]).astype(np.float32)


def _paced(frames: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """(new frames,) float64: the old frame that each new one shows; the pace changes smoothly."""
    knots = max(2, round(frames * FRAME_SECONDS / _PACE_SECONDS) + 1)
    paces = np.exp(rng.normal(0.0, spread, knots))
    lengths = 1.0 / np.interp(np.linspace(0, knots - 1, frames), np.arange(knots), paces)
    ends = np.cumsum(lengths)
    return np.interp(np.arange(max(1, round(ends[-1]))), ends - lengths[0], np.arange(frames))


def _between(values: Float32, rows: np.ndarray, columns: np.ndarray) -> Float32:
    """(rows, columns) float32 of `values` between its own, linearly."""
    return (_blend(columns, values.shape[1]) @ (_blend(rows, values.shape[0]) @ values).T).T


def _blend(at: np.ndarray, length: int) -> csr_array:
    """(len(at), length) float32: what each position takes of its two neighbours. Sparse, and so without BLAS's threads."""
    below = np.minimum(np.floor(at).astype(int), length - 2)
    share = (at - below).astype(np.float32)
    parts = np.stack([1 - share, share], 1).ravel()
    return csr_array(
        (parts, np.stack([below, below + 1], 1).ravel(), np.arange(0, len(parts) + 1, 2)), (len(at), length)
    )
