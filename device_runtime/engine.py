"""What every engine offers: ONNX Runtime and llama.cpp on the device, PyTorch on the build machine."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


class Engine(Protocol):
    """One loaded speech LLM that decodes one utterance at a time. Not thread-safe."""

    name: str  # for example "onnx-int4", "torch-float32"

    def encode(self, samples: Float32) -> Float32:
        """Audio half: (n,) mono float32 at 16 kHz in [-1, 1] → (audio_tokens, hidden) in the decoder's space.

        The engine pads to whole stacks itself; the length is the audio's own, never 30 s.
        """
        ...

    def start(self, audio_embeddings: Float32) -> Float32:
        """Prefill prompt and audio, forgetting the utterance before → (vocab,) logits of the first token."""
        ...

    def step(self, token: int) -> Float32:
        """Append one token → (vocab,) logits of the next. The array is valid until the next call."""
        ...

    def score(self, audio_embeddings: Float32, tokens: list[int]) -> Float32:
        """Negative log-likelihood (nats) of every token of a given transcript, teacher-forced → (len(tokens),)."""
        ...
