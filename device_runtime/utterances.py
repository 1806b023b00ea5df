"""Where in a recording someone speaks: the turn detector of live audio, run over samples that are all there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.turn_detector import FRAME, TurnClosed, TurnDetector, TurnOptions
from prunella.device_runtime.vad import SpeechDetector

Float32 = npt.NDArray[np.float32]

# A file has no speaker who waits for an answer: a pause within a sentence need not end its utterance, and half a second
# of quiet on either side is kept, without which more words were wrong (33.7 against 27.4 % on the committed clips).
FILE_TURNS = TurnOptions(end_silence=1.0, pre_roll=0.5, tail=0.5)


def find_utterances(
    samples: Float32, vad: SpeechDetector, options: TurnOptions = FILE_TURNS
) -> Iterator[tuple[int, int]]:
    """Half-open ranges (start, stop) of (n,) samples at 16 kHz that hold speech: in order, apart, none too long for a
    model. What lies in none of them is silence or noise. The detector must be fresh; 0.5 % of real time."""
    detector = TurnDetector(options)
    whole = len(samples) // FRAME * FRAME
    for begin in range(0, whole, FRAME):
        frame = samples[begin : begin + FRAME]
        for event in detector.push(vad(frame), float(frame @ frame)):
            if isinstance(event, TurnClosed):
                yield event.start, event.stop
    for event in detector.finish(len(samples) - whole):
        if isinstance(event, TurnClosed):
            yield event.start, event.stop
