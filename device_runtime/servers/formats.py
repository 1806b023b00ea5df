"""The response formats of OpenAI's transcription endpoint, over a `Recognition`: one segment an utterance, subtitles in cues."""

from __future__ import annotations

import html
import json
import zlib
from dataclasses import replace
from typing import Any

from prunella.device_runtime.servers.service import Recognition, Utterance
from prunella.device_runtime.servers.subtitles import Cue, cues

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
        language: that was spoken, or that it transcribes.
        notes: what of the request was not followed, and why words may be missing.
    """
    if form == "text":
        return recognition.text + "\n"
    if form in ("srt", "vtt"):
        shown = _cues(recognition)
        if form == "srt":
            named = (_named(cue, f"{cue.speaker}: ") for cue in shown)
            return "\n".join(_cue(cue, ",", f"{number}\n") for number, cue in enumerate(named, start=1))
        safe = (
            _named(
                replace(cue, lines=tuple(html.escape(line, quote=False) for line in cue.lines)),
                f"<v {cue.speaker}>",
            )
            for cue in shown
        )
        return "WEBVTT\n" + "".join(_cue(cue, ".", "\n") for cue in safe)
    body = summary(recognition, model=model, language=language, notes=notes)
    if form == "verbose_json":
        segments = [_segment(number, u) for number, u in enumerate(recognition.utterances)]
        body = {"task": "transcribe", "duration": round(recognition.seconds, 5), **body, "segments": segments}
    return json.dumps(body, ensure_ascii=False)


def subtitles(recognition: Recognition) -> list[dict[str, Any]]:
    """The cues of `srt` and `vtt` as JSON-ready dicts: seconds, and one or two lines."""
    return [
        {"start": round(cue.t0, 3), "end": round(cue.t1, 3), "text": "\n".join(cue.lines)}
        | ({"speaker": cue.speaker} if cue.speaker else {})
        for cue in _cues(recognition)
    ]


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
    if utterance.transcript.language is not None:
        segment["language"] = utterance.transcript.language
    if utterance.transcript.turns:
        segment["turns"] = [turn.to_json(utterance.t0) for turn in utterance.transcript.turns]
    if utterance.transcript.phrases:
        segment["phrase"] = utterance.transcript.phrases[0]
    return segment


def _cues(recognition: Recognition) -> list[Cue]:
    found = []
    for u in recognition.utterances:
        if not u.transcript.turns:
            found += cues(u.transcript.text, u.t0, u.t1, u.pauses)
        for turn in u.transcript.turns:
            spoken = cues(turn.text, u.t0 + turn.t0, u.t0 + turn.t1, u.pauses)
            found += [replace(cue, speaker=turn.speaker) for cue in spoken]
    return found


def _named(cue: Cue, speaker: str) -> Cue:
    """With who says it before the first line, where that is known."""
    return replace(cue, lines=(speaker + cue.lines[0], *cue.lines[1:])) if cue.speaker else cue


def _cue(cue: Cue, mark: str, head: str) -> str:
    return f"{head}{_clock(cue.t0, mark)} --> {_clock(cue.t1, mark)}\n" + "".join(
        f"{line}\n" for line in cue.lines
    )


def _clock(seconds: float, mark: str) -> str:
    total = round(seconds * 1000)
    return f"{total // 3_600_000:02}:{total // 60_000 % 60:02}:{total // 1000 % 60:02}{mark}{total % 1000:03}"
