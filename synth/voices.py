"""Voices that speak on this machine without torch: hibari-tts, and Debian's flite and espeak-ng where installed."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import EngineError, UsageError
from prunella.device_runtime.base.extras import explained
from prunella.device_runtime.base.install_lines import install_line
from prunella.device_runtime.sound.audio import check_samples
from prunella.device_runtime.sound.resampling import resample

FLITE_VOICES = ("kal", "awb", "rms", "slt")
ESPEAK_VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f3", "en-us+m3", "en-gb+f2")
_SPEAK_SECONDS = 60.0
_ANYBODY = "+any"  # behind a voice, as espeak-ng writes variants


class Voice(Protocol):
    """Says one sentence at a rate (1.0 as the voice is), deterministically for a seed."""

    @property
    def name(self) -> str:
        """How the manifest calls the voice."""
        ...

    def speak(self, text: str, rate: float, seed: int) -> Float32:
        """→ (n,) float32 at 16 kHz; empty when there is nothing to say."""


@dataclass
class HibariVoice:
    """hibari-tts: an ONNX model in its wheel; voice "heart" is inside, others are downloaded by it once.

    `anybody`: every clip has a speaker of its own (`hibari:heart+any`).
    """

    voice: str = "heart"
    anybody: bool = False
    name: str = field(init=False)
    _engine: Any = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self.name = f"hibari:{self.voice}{_ANYBODY if self.anybody else ''}"

    def speak(self, text: str, rate: float, seed: int) -> Float32:
        """See `Voice.speak`."""
        if self._engine is None:  # once a process, so that voices can be sent to workers
            self._engine = _hibari().Hibari(voice=self.voice)
        speed = float(np.clip(rate, 0.5, 2.0))
        samples = self._as_anybody(text, speed, seed) if self.anybody else self._engine(text, speed, seed)
        return resample(samples, self._engine.sample_rate) if len(samples) else samples

    def _as_anybody(self, text: str, speed: float, seed: int) -> Float32:
        # Here, because only these voices need scipy.
        from prunella.synth.speakers import Spectrum, draw_speaker, in_room, spoken_by

        rng = np.random.default_rng(seed)
        speaker = draw_speaker(rng)
        parts = []
        for phonemes in self._engine.phonemize(text):
            ids = np.array([self._engine.ids(phonemes)], np.int64)
            said = self._engine.sess.run(None, {"ids": ids, "speed": np.array([speed], np.float32)})
            spectrum = spoken_by(Spectrum(*(part[0] for part in said)), speaker, rng)
            parts.append(_hibari().dsp.synth(*vars(spectrum).values(), rng))
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return in_room(samples, speaker, self._engine.sample_rate, rng)


@dataclass(frozen=True)
class CommandVoice:
    """A voice of a program that writes a wav file: flite or espeak-ng."""

    program: str
    voice: str

    @property
    def name(self) -> str:
        return f"{self.program}:{self.voice}"

    def speak(self, text: str, rate: float, seed: int) -> Float32:
        """See `Voice.speak`. These programs have no chance in them; the seed changes nothing."""
        with tempfile.TemporaryDirectory() as folder:
            sentence, wave = Path(folder) / "sentence.txt", Path(folder) / "sentence.wav"
            # In a file, so that a sentence is never taken for an option.
            sentence.write_text(text, encoding="utf-8")
            if self.program == "flite":
                stretch = f"duration_stretch={1 / rate:.3f}"
                command = [
                    "flite",
                    "-voice",
                    self.voice,
                    "--setf",
                    stretch,
                    "-f",
                    str(sentence),
                    "-o",
                    str(wave),
                ]
            else:
                command = [
                    "espeak-ng",
                    "-v",
                    self.voice,
                    "-s",
                    str(round(170 * rate)),
                    "-f",
                    str(sentence),
                    "-w",
                    str(wave),
                ]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SPEAK_SECONDS, check=False
            )
            if done.returncode or not wave.is_file():
                reason = " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
                raise EngineError(f"{self.name} did not speak ({reason}): choose other --voices")
            samples, rate_hz = soundfile.read(io.BytesIO(wave.read_bytes()), dtype="float32", always_2d=True)
        return check_samples(samples, rate_hz, name=self.name) if len(samples) else np.zeros(0, np.float32)


def installed_voices() -> list[str]:
    """Names of the voices that speak here without a download."""
    names = []
    try:
        _hibari()
        names.append("hibari:heart")
    except EngineError:
        pass
    names += [f"flite:{voice}" for voice in FLITE_VOICES if shutil.which("flite")]
    names += [f"espeak-ng:{voice}" for voice in ESPEAK_VOICES if shutil.which("espeak-ng")]
    return names


def open_voices(names: Sequence[str] = ()) -> list[Voice]:
    """Voices by name (`hibari:heart`, `flite:slt`, `espeak-ng:en-gb`); none named: all that are installed.

    Raises:
        EngineError: a program or package is not installed, or there is no voice at all.
        UsageError: not such a name.
    """
    voices: list[Voice] = []
    for name in names or installed_voices():
        program, _, voice = name.partition(":")
        if program == "hibari":
            known = list(_hibari().voices.VOICES)
            one, anybody = voice.removesuffix(_ANYBODY), voice.endswith(_ANYBODY)
            if one not in known:
                raise UsageError(
                    f"hibari has no voice '{one}': choose from {', '.join(known)}, with {_ANYBODY} for many speakers"
                )
            voices.append(HibariVoice(one, anybody))
        elif program in ("flite", "espeak-ng") and voice:
            if not shutil.which(program):
                raise EngineError(
                    f"{program} is not installed: apt install {program}, or use --voices hibari:heart"
                )
            voices.append(CommandVoice(program, voice))
        else:
            raise UsageError(f"no voice '{name}': write hibari:heart, flite:slt, or espeak-ng:en-us")
    if not voices:
        raise EngineError(f"nothing here can speak: {install_line('synth')}, or apt install flite espeak-ng")
    return voices


def _hibari() -> Any:
    try:
        import hibari
        import hibari.dsp
        import hibari.voices
    except ImportError as error:
        raise explained(error, "a voice of hibari") from error
    return hibari
