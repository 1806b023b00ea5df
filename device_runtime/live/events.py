"""What a live session is told (`LiveOptions`) and what it says (`LiveEvent`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from prunella.device_runtime.sound.turn_detector import TurnOptions
from prunella.device_runtime.transcript import Transcript


@dataclass(frozen=True)
class LiveOptions:
    """How a live session turns speech into text."""

    turns: TurnOptions = field(default_factory=TurnOptions)
    partial_interval: float = 0.6  # seconds of audio between partial texts; 0 for none
    partial_share: float = 0.15  # and at least this share of the utterance, since each decodes all of it
    speculate: bool = True  # guess the final text as soon as the speaker pauses
    max_backlog: float = 60.0  # seconds of closed utterances that may wait; beyond it `feed` waits


@dataclass(frozen=True)
class LiveEvent:
    """What happened in seconds [t0, t1) of the stream.

    Attributes:
        type: "partial": `text` is what is stable so far; it only grows. "final": the utterance's text, which may differ
            from the partials; its id never comes again. "silence": no text.
        utterance_id: None in a silence between utterances.
        t0: seconds from the start of the stream; what was dropped counts as time.
        t1: likewise.
        text: empty in a silence.
        speech_end: end of the last speech in the utterance, in seconds of the stream (final only).
        timings: seconds (final only). `latency`: from the moment when the last speech sample was captured to this event,
            end silence included; `after_turn`: from the moment when the turn was seen to end; `encode`, `prefill`,
            `decode`, `compute`: of the decode that made the text.
        guessed: the text was ready before the turn ended.
        drops: samples at 16 kHz that were lost before or within this range and not yet reported.
        transcript: of a final.
    """

    type: Literal["partial", "final", "silence"]
    utterance_id: int | None
    t0: float
    t1: float
    text: str = ""
    speech_end: float | None = None
    timings: dict[str, float] | None = None
    guessed: bool = False
    drops: int = 0
    transcript: Transcript | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; what does not apply is left out."""
        row: dict[str, Any] = {
            "type": self.type,
            "utterance_id": self.utterance_id,
            "t0": round(self.t0, 3),
            "t1": round(self.t1, 3),
            "text": self.text,
        }
        if self.type == "final":
            row["speech_end"] = self.speech_end if self.speech_end is None else round(self.speech_end, 3)
            row["timings"] = {key: round(value, 4) for key, value in (self.timings or {}).items()}
            row["guessed"] = self.guessed
            if self.transcript is not None and self.transcript.language is not None:
                row["language"] = self.transcript.language
            if self.transcript is not None and self.transcript.turns:
                row["turns"] = [turn.to_json(self.t0) for turn in self.transcript.turns]
            if self.transcript is not None and self.transcript.phrases:
                row["phrase"] = self.transcript.phrases[0]
        if self.type != "partial":
            row["drops"] = self.drops
        return row
