"""What goes into a decode (`DecodeOptions`) and what comes out (`Transcript`), the same for every engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

FinishReason = Literal["eos", "length", "repeat", "silence", "phrase", "no-phrase"]
Effort = Literal["fast", "balanced", "exact"]
_Nats = Annotated[float, Meta(ge=0, le=1_000)]


@dataclass(frozen=True)
class DecodeOptions:
    """How one utterance is decoded. Defaults are those of the reference model; a bundle carries its own."""

    # Cap: seconds of audio * this + extra_tokens.
    max_tokens_per_second: Annotated[float, Meta(gt=0, le=1_000)] = 10.0
    extra_tokens: Annotated[int, Meta(ge=0, le=2**26)] = 10
    # Repeat stop, silence and speech gate; the token cap always holds.
    guards: bool = True
    # Longest loop that the repeat stop sees, in words; how often it is said in a row; and how many words in all.
    repeat_max_words: Annotated[int, Meta(ge=0, le=2**16)] = 48
    repeat_times: Annotated[int, Meta(ge=1, le=2**16)] = 3
    repeat_min_words: Annotated[int, Meta(ge=0, le=2**16)] = 6
    # Audio whose loudest 30 ms are below this gives no text.
    silence_dbfs: Annotated[float, Meta(le=0)] = -60.0
    # Audio without 32 ms that are speech with this probability gives no text; 0: no gate.
    speech_probability: Annotated[float, Meta(ge=0, le=1)] = 0.3
    # Transcripts followed at once (beam_search.py); 1: greedy, as on engines that cannot do more.
    beams: Annotated[int, Meta(ge=1, le=16)] = 1
    # Of what a CTC head hears beside the decoder, where there is a head and several beams.
    ctc_weight: Annotated[float, Meta(ge=0)] = 0.2
    # How much of the decoder runs where a CTC head is sure (decoding/effort.py): below "exact", letters are the answer where
    # no frame's entropy is above the first number, and are kept while they are at most the second less likely than the
    # decoder's own choice. Nats; these are careful, a model's own are chosen by research/effort/choose.py.
    effort: Effort = "exact"
    balanced_entropy: _Nats = 0.0
    balanced_margin: _Nats = 0.5
    fast_entropy: _Nats = 0.1
    fast_margin: _Nats = 1.0
    # Verify several guessed tokens in one pass (device_runtime/decoding/draft.py).
    draft: bool = True
    # Cosine of audio and its nearest token at which that is never, and nearly always, what was said.
    draft_never: float = 0.35
    draft_sure: float = 0.75
    # Token that audio without a token of its own is nearest to; -1: none.
    draft_blank: Annotated[int, Meta(ge=-1, lt=2**26)] = -1

    @property
    def shortcut(self) -> tuple[float, float]:
        """Entropy and margin of the effort; of "exact", with which nothing is shortened, zeros."""
        if self.effort == "fast":
            return self.fast_entropy, self.fast_margin
        return (self.balanced_entropy, self.balanced_margin) if self.effort == "balanced" else (0.0, 0.0)

    def token_cap(self, seconds: float) -> int:
        """Most tokens that `seconds` of audio may become."""
        return int(seconds * self.max_tokens_per_second) + self.extra_tokens


@dataclass(frozen=True)
class Timings:
    """Seconds of compute. `first_token` counts from the start of the encoder to the first token of the text."""

    audio: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    total: float = 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of compute for a second of audio (lower is faster)."""
        return self.total / self.audio if self.audio else 0.0

    def __add__(self, other: Timings) -> Timings:
        """Sum of both; the first token is that of the first which has one."""
        return Timings(
            audio=self.audio + other.audio,
            encode=self.encode + other.encode,
            prefill=self.prefill + other.prefill,
            decode=self.decode + other.decode,
            first_token=self.first_token or other.first_token,
            total=self.total + other.total,
        )


@dataclass(frozen=True)
class Phrase:
    """One thing that can be said.

    `label` is the template's, or the template itself where it has none; `slots` are pairs of a slot's name and the
    words in it, in their order.
    """

    text: str
    label: str
    slots: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PhraseMatch:
    """What came of one utterance.

    `phrase` is None where nothing fits. `score` is the geometric mean of the probabilities of the phrase's tokens, its
    end included, 0 to 1; of a refusal that of the best phrase that was looked at to its end, 0 if none was.
    `exact` is false where the search was cut short.
    """

    phrase: Phrase | None
    score: float
    tokens: tuple[int, ...] = ()
    passes: int = 0
    exact: bool = True

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict: text, label, slots (all None or empty where nothing fits) and score."""
        found = self.phrase
        return {
            "text": found.text if found else None,
            "label": found.label if found else None,
            "slots": dict(found.slots) if found else {},
            "score": round(self.score, 4),
        }


@dataclass(frozen=True)
class Turn:
    """What one speaker said from `t0` to `t1`, seconds from the file's start, as the model says.

    `speaker`: the model's name, such as "S01". It counts speakers anew in every segment.
    """

    speaker: str
    t0: float
    t1: float
    text: str

    def to_json(self, offset: float = 0.0) -> dict[str, Any]:
        """A JSON-ready dict, so many seconds later."""
        begin, end = round(self.t0 + offset, 3), round(self.t1 + offset, 3)
        return {"speaker": self.speaker, "t0": begin, "t1": end, "text": self.text}


@dataclass(frozen=True)
class Segment:
    """One stretch of audio, at most 29.5 s, decoded on its own. `t0` and `t1` are seconds from the file's start.

    `language`: code of the one that the model named, or was told; its name, where the bundle knows no code; None: neither.
    `turns`: who said what when, of a model that says so.
    """

    t0: float
    t1: float
    text: str
    tokens: tuple[int, ...]
    audio_tokens: int
    finish_reason: FinishReason
    timings: Timings
    passes: int = 0  # of the decoder after the prefill; fewer than tokens where drafts were right
    phrase: PhraseMatch | None = None  # where only the phrases of a list could be said
    language: str | None = None
    turns: tuple[Turn, ...] = ()


def silent_segment(t0: float, t1: float, spent: float) -> Segment:
    """One in which nobody speaks; `spent`: seconds that it took to know."""
    return Segment(t0, t1, "", (), 0, "silence", Timings(audio=t1 - t0, encode=spent, total=spent))


def main_language(segments: Iterable[Segment]) -> str | None:
    """The language of most of the audio, as its segments have it; None: no segment has one."""
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment.language is not None:
            seconds[segment.language] = seconds.get(segment.language, 0.0) + segment.t1 - segment.t0
    return max(seconds, key=seconds.__getitem__, default=None)


@dataclass(frozen=True)
class Transcript:
    """The text of one recording with everything needed to explain it.

    `warnings`: why words may be missing, in words.
    """

    text: str
    segments: tuple[Segment, ...] = ()
    timings: Timings = field(default_factory=Timings)
    engine: str = ""
    options: DecodeOptions = field(default_factory=DecodeOptions)
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for segment in self.segments for token in segment.tokens)

    @property
    def finish_reason(self) -> FinishReason:
        """The worst of the segments' reasons: a loop or a cap anywhere is worth knowing."""
        reasons = {segment.finish_reason for segment in self.segments}
        for reason in ("repeat", "length", "no-phrase", "phrase", "eos"):
            if reason in reasons:
                return reason
        return "silence"

    @property
    def language(self) -> str | None:
        """See `main_language`."""
        return main_language(self.segments)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Who said what when, of a model that says so."""
        return tuple(turn for segment in self.segments for turn in segment.turns)

    @property
    def phrases(self) -> tuple[dict[str, Any], ...]:
        """JSON-ready: the phrases that were said, where only those of a list could be."""
        return tuple(
            segment.phrase.to_json()
            for segment in self.segments
            if segment.phrase is not None and segment.phrase.phrase is not None
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict: every field, and the real-time factor."""
        timings = {**asdict(self.timings), "real_time_factor": self.timings.real_time_factor}
        return {
            "text": self.text,
            "language": self.language,
            "finish_reason": self.finish_reason,
            "segments": [asdict(segment) for segment in self.segments],
            "timings": {key: round(value, 6) for key, value in timings.items()},
            "tokens": len(self.tokens),
            "passes": sum(segment.passes for segment in self.segments),
            "audio_tokens": sum(segment.audio_tokens for segment in self.segments),
            "engine": self.engine,
            "options": asdict(self.options),
            "warnings": list(self.warnings),
        }
