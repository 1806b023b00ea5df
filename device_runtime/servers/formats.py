"""The response formats of OpenAI's transcription endpoint, over a `Recognition`: one segment an utterance."""

from __future__ import annotations

import html
import json
import zlib
from typing import Any

from prunella.device_runtime.servers.desk import Recognition, Utterance

FORMATS = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
TIMED = ("verbose_json", "srt", "vtt")  # that say when what was said


def render(
    recognition: Recognition, form: str, *, model: str, language: str, notes: tuple[str, ...] = ()
) -> str:
    """The body of a response.

    Args:
        recognition: what was said.
        form: one of `FORMATS`.
        model: the model that did it, whatever the request called it.
        language: that it transcribes, likewise.
        notes: what of the request was not followed.
    """
    if form == "text":
        return recognition.text + "\n"
    if form == "srt":
        return "\n".join(
            f"{number}\n{_clock(u.t0, ',')} --> {_clock(u.t1, ',')}\n{_line(u)}\n"
            for number, u in enumerate(recognition.utterances, start=1)
        )
    if form == "vtt":
        cues = [
            f"\n{_clock(u.t0, '.')} --> {_clock(u.t1, '.')}\n{html.escape(_line(u), quote=False)}\n"
            for u in recognition.utterances
        ]
        return "WEBVTT\n" + "".join(cues)
    body = summary(recognition, model=model, language=language, notes=notes)
    if form == "verbose_json":
        segments = [_segment(number, u) for number, u in enumerate(recognition.utterances)]
        body = {"task": "transcribe", "duration": round(recognition.seconds, 5), **body, "segments": segments}
    return json.dumps(body, ensure_ascii=False)


def summary(
    recognition: Recognition, *, model: str, language: str, notes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What every JSON answer holds: the text, who made it, how long it took, and the phrases that were found."""
    spent = recognition.timings
    body: dict[str, Any] = {
        "text": recognition.text,
        "model": model,
        "language": language,
        "usage": {"type": "duration", "seconds": round(recognition.seconds, 3)},
        "timings": {
            "waited": round(recognition.waited, 4),
            "encode": round(spent.encode, 4),
            "prefill": round(spent.prefill, 4),
            "decode": round(spent.decode, 4),
            "compute": round(spent.total, 4),
        },
    }
    phrases = [phrase for u in recognition.utterances for phrase in u.transcript.phrases]
    if phrases:
        body["phrases"] = phrases
    if notes:
        body["warnings"] = list(notes)
    return body


def _segment(number: int, utterance: Utterance) -> dict[str, Any]:
    text = utterance.transcript.text
    encoded = text.encode()
    segment: dict[str, Any] = {
        "id": number,
        "seek": int(utterance.t0 * 100),
        "start": round(utterance.t0, 5),  # to the sample
        "end": round(utterance.t1, 5),
        "text": text,
        "tokens": list(utterance.transcript.tokens),
        "temperature": 0.0,
        # Clients of OpenAI expect these keys; this model has no such figures.
        "avg_logprob": None,
        "no_speech_prob": None,
        "compression_ratio": round(len(encoded) / len(zlib.compress(encoded)), 3) if encoded else 0.0,
        "finish_reason": utterance.transcript.finish_reason,
    }
    if utterance.transcript.phrases:
        segment["phrase"] = utterance.transcript.phrases[0]
    return segment


def _line(utterance: Utterance) -> str:
    return " ".join(utterance.transcript.text.split())


def _clock(seconds: float, mark: str) -> str:
    total = round(seconds * 1000)
    return f"{total // 3_600_000:02}:{total // 60_000 % 60:02}:{total // 1000 % 60:02}{mark}{total % 1000:03}"
