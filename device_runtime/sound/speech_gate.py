"""Nothing is decoded where nobody speaks: a language model asked to transcribe noise writes sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.sound.audio import is_silent
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.vad import TOGETHER, FrameListener, SileroVad, as_frames
from prunella.device_runtime.transcript import DecodeOptions

SHORTEST_SECONDS = 0.1  # no word is shorter; a model writes one all the same
_GATE_GAIN = 30.0  # dB, by which `SileroVad` amplifies what is quiet
_QUIET_PEAK = 10.0 ** (-45.0 / 20.0)  # from which on speech is heard like loud speech
_FAINT_PEAK = 10.0 ** (-55.0 / 20.0)  # below it rounding to 16 bits is a part of the sound


class SpeechGate:
    """Whether there is speech anywhere in a piece of audio, by Silero's network.

    Looks no further than the first frame that is speech.

    Raises:
        EngineError: onnxruntime is missing.
    """

    def __init__(self) -> None:
        self._vad = SileroVad()

    def listener(self, probability: float) -> FrameListener:
        """→ whether each of the next frames is speech at least with `probability`.

        For one recording, until this or `hears_speech` is asked for another.
        """
        self._vad.reset()
        return lambda frames: self._vad.judge(frames) >= probability

    def hears_speech(self, samples: Float32, probability: float) -> bool:
        """(n,) float32 at 16 kHz → whether some 32 ms of it are speech at least with `probability`."""
        self._vad.reset()
        return any(
            (self._vad.judge(as_frames(samples[start : start + TOGETHER])) >= probability).any()
            for start in range(0, len(samples), TOGETHER)
        )


class LevelMeter:
    """The loudest sample of what went through it, and how many there were."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.count = 0

    def measured(self, blocks: Iterable[Float32]) -> Iterator[Float32]:
        """The same blocks of (n,) samples."""
        for block in blocks:
            self.take(block)
            yield block

    def take(self, block: Float32) -> None:
        """The next (n,) samples."""
        self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))
        self.count += len(block)


def speech_listener(gate: SpeechGate | None, options: DecodeOptions) -> FrameListener:
    """Whether the next frames of a recording are worth decoding; where no gate is there, whether they are not silence."""
    if not options.guards:
        return lambda frames: np.ones(len(frames), np.bool_)
    if gate is None or options.speech_probability <= 0:
        return lambda frames: np.array([not is_silent(frame, options.silence_dbfs) for frame in frames])
    return gate.listener(options.speech_probability)


def worth_decoding(
    samples: Float32, gate: SpeechGate | None, options: DecodeOptions, *, heard: bool = False
) -> bool:
    """(n,) samples at 16 kHz → whether they may hold a word; `heard`: it is known that there is speech in them."""
    if not options.guards:
        return True
    if len(samples) < SHORTEST_SECONDS * SAMPLE_RATE:
        return False
    if heard:
        return True
    if gate is None or options.speech_probability <= 0:
        return not is_silent(samples, options.silence_dbfs)
    # Quiet speech is below what is called silence where nothing better judges: the gate amplifies it.
    loud_enough = not is_silent(samples, options.silence_dbfs - _GATE_GAIN)
    return loud_enough and gate.hears_speech(samples, options.speech_probability)


def doubts(seconds: float, peak: float, *, heard: bool, words: bool) -> tuple[str, ...]:
    """What to tell whoever gets a text that may lack words, or have wrong ones; mostly nothing.

    Args:
        seconds: of audio.
        peak: its loudest sample, 0 to 1.
        heard: whether anything in it was taken for speech.
        words: whether the text has any.
    """
    loudest = f"its loudest sample is at {20 * math.log10(peak):.0f} dB of full scale" if peak > 0 else ""
    if words:
        if 0 < peak < _FAINT_PEAK:
            return (f"the audio is very quiet ({loudest}), words may be wrong: raise the microphone's gain",)
        return ()
    if seconds < SHORTEST_SECONDS:
        return (f"{1000 * seconds:.0f} ms of audio are too short for a word",)
    if heard:
        return ("something like speech was heard, but no words came of it",)
    if 0 < peak < _QUIET_PEAK:
        return (f"no speech was heard, but the audio is very quiet ({loudest}): raise the microphone's gain",)
    return ()


def open_speech_gate() -> SpeechGate | None:
    """A gate, or None where onnxruntime is not installed (a device that runs llama.cpp alone)."""
    try:
        return SpeechGate()
    except EngineError:
        return None
