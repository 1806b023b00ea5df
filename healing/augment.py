"""Variations of training clips. All is a function of (seed, clip, variant), so that a resumed run hears the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.resampling import resample
from prunella.healing.plan import Augmentation
from prunella.synth.noise import NOISES, colored_noise

LONGEST_SECONDS = 30.0
_SPEEDS = 8  # soxr is fast for ratios of small numbers, so speeds come in steps
_MASK_SECONDS = 0.25


@dataclass(frozen=True)
class Variation:
    """What is done to one clip. `snr_db` None: no noise. `silence`: seconds behind the clip."""

    speed: float = 1.0
    snr_db: float | None = None
    noise: str = "white"
    gain_db: float = 0.0
    silence: float = 0.0
    seed: int = 0

    def seconds(self, seconds: float) -> float:
        """Length of a clip of `seconds` after the variation."""
        return seconds / self.speed + self.silence


def variation(
    plan: Augmentation, seed: int, clip: int, variant: int, seconds: float, longest: float
) -> Variation:
    """The variation number `variant` of clip number `clip`; variant 0 keeps the clip clean and at its speed.

    Args:
        plan: how much of what.
        seed: of the run.
        clip: its number.
        variant: 0 <= variant < plan.variants.
        seconds: the clip's length.
        longest: seconds that the model takes, which silence may fill up.
    """
    rng = np.random.default_rng((seed, clip, variant, 1))
    speed, snr, gain = 1.0, None, 0.0
    if variant:
        step = int(rng.integers(-_SPEEDS, _SPEEDS + 1))
        speed = round(1 + plan.speed * step / _SPEEDS, 4)
        if seconds / speed > longest:
            speed = 1.0
        gain = float(rng.uniform(-plan.gain_db, plan.gain_db))
        if rng.random() < plan.noisy:
            snr = float(rng.uniform(*plan.snr_db))
    silence = 0.0
    if rng.random() < plan.trailing_silence:
        room = max(longest - seconds / speed, 0.0)
        silence = room if rng.random() < 0.5 else float(rng.uniform(0, room))
    noise = NOISES[int(rng.integers(len(NOISES)))]
    return Variation(speed, snr, noise, gain, silence, int(rng.integers(2**31)))


def vary(samples: Float32, change: Variation) -> Float32:
    """(n,) samples at 16 kHz → (m,) the same clip, varied, within [-1, 1]."""
    rng = np.random.default_rng(change.seed)
    if change.speed != 1.0:
        samples = resample(samples, SAMPLE_RATE * change.speed)
    if change.snr_db is not None:
        power = float(np.mean(np.square(samples))) + 1e-10
        level = np.sqrt(power / 10 ** (change.snr_db / 10))
        samples = samples + level * colored_noise(len(samples), change.noise, rng)
    if change.silence > 0:
        samples = np.pad(samples, (0, round(change.silence * SAMPLE_RATE)))
    if change.gain_db:
        samples = samples * np.float32(10 ** (change.gain_db / 20))
    return np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)


def noise_clip(seed: int, number: int) -> Float32:
    """A clip of 1 to 10 s in which nobody speaks: noise of some colour, level and envelope, or digital silence."""
    rng = np.random.default_rng((seed, number, 2))
    count = round(noise_seconds(seed, number) * SAMPLE_RATE)
    if rng.random() < 0.2:
        return np.zeros(count, np.float32)
    samples = colored_noise(count, NOISES[int(rng.integers(len(NOISES)))], rng)
    knots = rng.uniform(0.2, 1.0, 8)
    envelope = np.interp(np.linspace(0, 7, count), np.arange(8), knots)
    level = 10 ** (rng.uniform(-60, -20) / 20)
    return np.clip(samples * envelope * level, -1.0, 1.0).astype(np.float32)


def noise_seconds(seed: int, number: int) -> float:
    """Length of `noise_clip(seed, number)`."""
    return float(np.random.default_rng((seed, number, 3)).uniform(1.0, 10.0))


def time_masks(
    frames: int, frames_per_second: float, a_second: float, rng: np.random.Generator
) -> list[slice]:
    """Spans of at most 250 ms to be hidden, `a_second` of them for each second."""
    count = rng.poisson(a_second * frames / frames_per_second) if a_second > 0 else 0
    widest = max(1, round(_MASK_SECONDS * frames_per_second))
    spans = []
    for _ in range(count):
        start = int(rng.integers(frames))
        spans.append(slice(start, min(frames, start + int(rng.integers(1, widest + 1)))))
    return spans
