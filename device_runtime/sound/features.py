"""What the audio encoder hears, made of samples by a bundle's data (`FeatureSpec`).

The device and the build machine both use this function, so that a model never sees other features than it was trained on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.bundle import FeatureSpec
from prunella.device_runtime.sound.fbank import fbank
from prunella.device_runtime.sound.log_mel import log_mel


def features(samples: npt.ArrayLike, spec: FeatureSpec) -> tuple[Float32, int]:
    """Features of an utterance, and how many of their frames are audio's.

    Args:
        samples: (n,) mono audio at 16 kHz in [-1, 1].
        spec: of the model.

    Returns:
        (width, frames) float32, and the number of valid frames, the first ones.

    Raises:
        ValueError: not one-dimensional, or too short for one window even when padded.
    """
    samples = np.asarray(samples, dtype=np.float32)
    missing = spec.padded(len(samples)) - len(samples)
    padded = np.pad(samples, (0, missing)) if missing else samples
    found = fbank(padded, spec) if spec.kind == "fbank" else _log_mel(padded, spec)
    found = stacked(found, spec.stack, spec.stack_step)
    if frames := -found.shape[1] % spec.frame_multiple:
        found = np.pad(found, ((0, 0), (0, frames)))
    return found, spec.valid_frames(len(samples))


def _log_mel(samples: Float32, spec: FeatureSpec) -> Float32:
    """Without frames at the end that fill no stack."""
    found = log_mel(
        samples,
        spec.num_mel_bins,
        n_fft=spec.n_fft,
        mel_scale=spec.mel_scale,
        last_frame=spec.last_frame,
    )
    return found[:, : found.shape[1] // spec.stack_step * spec.stack_step]


def stacked(frames: Float32, stack: int, step: int) -> Float32:
    """(bins, n) → (stack * bins, n / step rounded up): every `step`-th frame with its neighbors, the earliest on top.

    Low frame rate features as FunASR makes them: `(stack - 1) // 2` neighbors are before a frame, the first and the last frame
    being repeated at the ends.
    """
    if stack == step == 1:
        return frames
    count = frames.shape[1]
    first = np.arange(0, count, step)[:, None] - (stack - 1) // 2
    rows = frames.T[np.clip(first + np.arange(stack), 0, count - 1)]
    return np.ascontiguousarray(rows.reshape(len(first), -1).T)
