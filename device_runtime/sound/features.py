"""What the audio encoder hears, made of samples by a bundle's data (`FeatureSpec`).

The device and the build machine both use this function, so that a model never sees other features than it was trained on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.bundle import FeatureSpec
from prunella.device_runtime.sound.log_mel import log_mel


def features(samples: npt.ArrayLike, spec: FeatureSpec) -> tuple[Float32, int]:
    """Features of an utterance, and how many of their frames are audio's.

    Args:
        samples: (n,) mono audio at 16 kHz in [-1, 1].
        spec: of the model.

    Returns:
        (num_mel_bins, frames) float32, and the number of valid frames, the first ones.

    Raises:
        ValueError: not one-dimensional, or too short for one window even when padded.
    """
    samples = np.asarray(samples, dtype=np.float32)
    missing = spec.padded(len(samples)) - len(samples)
    found = log_mel(np.pad(samples, (0, missing)) if missing else samples, spec.num_mel_bins)
    if frames := -found.shape[1] % spec.frame_multiple:
        found = np.pad(found, ((0, 0), (0, frames)))
    return found, spec.valid_frames(len(samples))
