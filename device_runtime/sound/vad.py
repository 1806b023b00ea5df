"""How likely a frame of audio is speech: Silero's network on onnxruntime, without torch, behind an energy gate."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.extras import explained
from prunella.device_runtime.base.onnx_errors import run_errors
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.turn_detector import FRAME

# Silero VAD 6.2, the 16 kHz half, from the wheel silero-vad 6.2.3 (MIT), whose package would bring torch.
NETWORK = Path(__file__).parent / "silero_vad" / "silero_vad_16k.onnx"

# The network was trained on speech at usual levels, and takes a microphone at low gain for silence from -42 dBFS on.
_LOUD_ENOUGH = 0.2  # peak to which what is quieter is amplified (-14 dBFS); what is louder stays as it is
_MOST_GAIN = 64.0  # 36 dB
# Of the level for each frame: half in 0.5 s, so that somebody far away is heard two seconds after somebody near.
_RELEASE = 0.5 ** (FRAME / SAMPLE_RATE / 0.5)
_CONTEXT = 64  # samples of the frame before that the network sees again


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
    _input: Float32  # (1, _CONTEXT + FRAME), a frame behind the end of the last one

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
        self._rate = np.array(SAMPLE_RATE, np.int64)
        self.reset()

    def reset(self) -> None:
        """Forget the stream so far."""
        self._level = 0.0
        self._forget()

    def __call__(self, frame: Float32) -> float:
        """(512,) float32 at 16 kHz, the next of the stream → probability of speech."""
        self._level = max(self._level * _RELEASE, float(np.abs(frame).max()))
        gain = min(max(_LOUD_ENOUGH / max(self._level, 1e-9), 1.0), _MOST_GAIN)
        if gain * gain * float(frame @ frame) < self._floor:
            self._forget()
            return 0.0
        self._input[0, :_CONTEXT] = self._input[0, -_CONTEXT:]
        self._input[0, _CONTEXT:] = frame
        with run_errors("the speech detector"):
            output, self._state = self._session.run(
                None, {"input": self._input * np.float32(gain), "state": self._state, "sr": self._rate}
            )
        return float(output[0, 0])

    def _forget(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._input = np.zeros((1, _CONTEXT + FRAME), np.float32)
