"""How likely a frame of audio is speech: Silero's network on onnxruntime, without torch, behind an energy gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.extras import explained
from prunella.device_runtime.base.onnx_errors import run_errors
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.turn_detector import FRAME

# Silero VAD 6.2, the 16 kHz half, from the wheel silero-vad 6.2.3 (MIT), whose package would bring torch; written anew for
# many frames a run by research/silero_sequence.py.
NETWORK = Path(__file__).parent / "silero_vad" / "silero_vad_16k.onnx"

# The network was trained on speech at usual levels, and takes a microphone at low gain for silence from -42 dBFS on.
_LOUD_ENOUGH = 0.2  # peak to which what is quieter is amplified (-14 dBFS); what is louder stays as it is
_MOST_GAIN = 64.0  # 36 dB
# Of the level for each frame: half in 0.5 s, so that somebody far away is heard two seconds after somebody near.
_RELEASE = 0.5 ** (FRAME / SAMPLE_RATE / 0.5)
_CONTEXT = 64  # samples of the frame before that the network sees again
TOGETHER = 64 * FRAME  # samples that are judged in one run at most: two seconds


# (n, 512) float32 at 16 kHz, the next frames of a recording → (n,) whether somebody speaks in each.
FrameListener = Callable[[Float32], npt.NDArray[np.bool_]]


def as_frames(samples: Float32) -> Float32:
    """(n,) samples → (frames, 512), the last filled up with zeros."""
    return np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)


class SpeechDetector(Protocol):
    """Anything that judges frames in order."""

    def __call__(self, frame: Float32) -> float:
        """(512,) float32 at 16 kHz, the next of the stream → probability of speech."""
        ...


class SileroVad:
    """Silero's recurrent network, one stream at a time. Not thread-safe.

    Quiet streams are amplified by up to 36 dB, by the loudest sample of the last seconds.

    Args:
        gate_dbfs: a frame whose RMS, amplified, is below this is silence without asking the network, and clears its memory.

    Raises:
        EngineError: onnxruntime is missing.
    """

    _state: Float32  # (2, 1, 128), the network's memory
    _context: Float32  # (_CONTEXT,) the end of the last frame, as it came

    def __init__(self, gate_dbfs: float = -60.0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise explained(error, "finding speech") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(NETWORK), options, providers=["CPUExecutionProvider"]
        )
        self._floor = FRAME * 10.0 ** (gate_dbfs / 10.0)
        self.reset()

    def reset(self) -> None:
        """Forget the stream so far."""
        self._level = 0.0
        self._forget()

    def __call__(self, frame: Float32) -> float:
        """(512,) float32 at 16 kHz, the next of the stream → probability of speech."""
        return float(self.judge(frame[None])[0])

    def judge(self, frames: Float32) -> Float32:
        """(n, 512) float32 at 16 kHz, the next of the stream → (n,) probability of speech of each, as one after the other."""
        gains = self._gains(np.abs(frames).max(axis=1, initial=0.0))
        heard = gains * gains * np.einsum("ij,ij->i", frames, frames) >= self._floor
        found = np.zeros(len(frames), np.float32)
        start = 0
        while start < len(frames):
            stop = start + 1
            while stop < min(len(frames), start + TOGETHER // FRAME) and heard[stop] == heard[start]:
                stop += 1
            if heard[start]:
                found[start:stop] = self._ask(frames[start:stop], gains[start:stop])
            else:
                self._forget()
            start = stop
        return found

    def _gains(self, peaks: Float32) -> Float32:
        """(n,) of the next frames: what is quiet is amplified, by the loudest of what was shortly before."""
        gains = np.empty(len(peaks), np.float32)
        for index, peak in enumerate(peaks.tolist()):
            self._level = max(self._level * _RELEASE, peak)
            gains[index] = min(max(_LOUD_ENOUGH / max(self._level, 1e-9), 1.0), _MOST_GAIN)
        return gains

    def _ask(self, frames: Float32, gains: Float32) -> Float32:
        """(n, 512) frames of a stream and their gains → (n,) what the network says."""
        joined = np.empty((len(frames), _CONTEXT + FRAME), np.float32)
        joined[:, _CONTEXT:] = frames
        joined[0, :_CONTEXT] = self._context
        joined[1:, :_CONTEXT] = frames[:-1, -_CONTEXT:]
        self._context = frames[-1, -_CONTEXT:].copy()
        with run_errors("the speech detector"):
            found, self._state = self._session.run(
                None, {"frames": joined * gains[:, None], "state": self._state}
            )
        probabilities: Float32 = found
        return probabilities

    def _forget(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)
