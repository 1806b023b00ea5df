"""What every engine offers: ONNX Runtime and llama.cpp on the device, PyTorch on the build machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import EngineError

# Of engines: above the most by which a pass over several tokens has changed a gap (`research/reference_model/tie.py`).
ROUNDED_NEAR_TIE = 1.0  # where activations are rounded to 8 bits
GGUF_NEAR_TIE = 0.1


def check_rewind(count: int, appended: int) -> None:
    """What every `Engine.rewind` asks first.

    Raises:
        EngineError: `count` tokens were not appended since `start`.
    """
    if not 0 <= count <= appended:
        raise EngineError(f"cannot forget {count} tokens: {appended} were appended")


class Engine(Protocol):
    """One loaded speech LLM that decodes one utterance at a time. Not thread-safe."""

    name: str  # for example "onnx-int4", "torch-float32"
    # Logits nearer than this may come in another order when `extend` gives them; 0: never.
    near_tie_margin: float

    @property
    def ctc_log_probs(self) -> Float32 | None:
        """(frames, 1 + letters) log-probabilities of a CTC head for the last audio; None: there is no head."""
        ...

    def encode(self, samples: Float32) -> Float32:
        """Audio half: (n,) mono float32 at 16 kHz in [-1, 1] → (audio_tokens, hidden) in the decoder's space.

        The engine pads to whole stacks itself; the length is the audio's own, never 30 s.
        """
        ...

    def start(self, audio_embeddings: Float32, after: tuple[int, ...] | None = None) -> Float32:
        """Prefill prompt and audio, forgetting the utterance before → (vocab,) logits of the first token.

        `after`: tokens behind the audio instead of the prompt's own, such as those of another language.
        """
        ...

    def step(self, token: int) -> Float32:
        """Append one token → (vocab,) logits of the next. The array is valid until the next call."""
        ...

    def extend(self, tokens: Sequence[int]) -> Float32:
        """Append several tokens in one pass → (len(tokens), vocab), row i what follows tokens[i]; valid as in `step`."""
        ...

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens that `step` or `extend` appended.

        Raises:
            EngineError: so many were not appended since `start`.
        """
        ...

    def token_embeddings(self, tokens: Sequence[int]) -> Float32 | None:
        """(len(tokens), hidden) the decoder's input embeddings, to compare audio with; None: no drafts from audio."""
        ...

    def score(
        self, audio_embeddings: Float32, tokens: list[int], after: tuple[int, ...] | None = None
    ) -> Float32:
        """Negative log-likelihood (nats) of every token of a given answer, teacher-forced → (len(tokens),).

        `after`: as in `start`.
        """
        ...


@runtime_checkable
class BeamEngine(Protocol):
    """An `Engine` that goes on with several transcripts in one pass.

    `has_ctc_head`: its `ctc_log_probs` will be there, which is what makes several transcripts pay. `most_beams`: that it can follow;
    None: as many as memory holds.
    """

    most_beams: int | None

    @property
    def has_ctc_head(self) -> bool: ...

    def step_beams(self, tokens: Sequence[int], parents: Sequence[int]) -> Float32:
        """Transcript i becomes transcript `parents[i]` of the last call with `tokens[i]` appended → (len(tokens), vocab).

        The first call after `start` has parents 0 only; `step` is for utterances without beams. Rows are valid until the
        next call.
        """
        ...
