"""One row of a benchmark: what was measured of one system, as medians over repeats, with its conditions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ClipTiming:
    """One transcription of one clip. Seconds of compute; parts are 0 where the system does not time them apart."""

    clip: str
    repeat: int
    audio_seconds: float
    total: float
    encode: float
    prefill: float
    decode: float
    first_token: float
    tokens: int
    text: str


@dataclass(frozen=True)
class BenchRecord:
    """Speed and memory of one system on some clips. Every time is the median of the repeats of a clip, then summed
    (or, for a latency, the median over clips); the first call and the load are apart and in none of them.
    """

    system: str
    engine: str
    threads: int | None  # asked for; None: the system's own choice
    clips: int
    repeats: int
    audio_seconds: float
    load_seconds: float  # from the start of a fresh process to ready (the disk's cache may be warm)
    first_call_seconds: float  # the first clip, before anything is warm
    real_time_factor: float  # seconds of compute for a second of audio
    decode_tokens_per_second: float | None
    first_token_seconds: float | None  # median over clips
    encode_seconds: float | None  # sums over clips
    prefill_seconds: float | None
    decode_seconds: float | None
    peak_memory_bytes: int | None
    disk_bytes: int | None
    empty: int  # clips without text: failures, however fast
    conditions: dict[str, Any] = field(default_factory=dict)
    predicted_real_time_factor: float | None = None  # by the cost model; None: no target was given

    @property
    def failed(self) -> bool:
        """Whether a clip came out empty: such a row must not be read as a speed."""
        return self.empty > 0

    @property
    def of_predicted(self) -> float | None:
        """Predicted seconds for one measured: 1 is as fast as the machine's kernels allow."""
        predicted = self.predicted_real_time_factor
        return predicted / self.real_time_factor if predicted and self.real_time_factor else None

    @property
    def times_real_time(self) -> float | None:
        """Seconds of audio for a second of compute."""
        return 1 / self.real_time_factor if self.real_time_factor else None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict: every field, `times_real_time`, `of_predicted` and `failed`; floats to six digits."""
        values = {**asdict(self), "times_real_time": self.times_real_time, "failed": self.failed}
        values["of_predicted"] = self.of_predicted
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BenchRecord:
        """Inverse of `to_json`, up to its rounding."""
        return cls(**{key: values[key] for key in cls.__dataclass_fields__ if key in values})


def median_timings(timings: Sequence[ClipTiming]) -> list[ClipTiming]:
    """One timing a clip, every time the median of its repeats, in order of first appearance."""
    by_clip: dict[str, list[ClipTiming]] = {}
    for timing in timings:
        by_clip.setdefault(timing.clip, []).append(timing)
    return [
        ClipTiming(
            clip=clip,
            repeat=len(repeats),
            audio_seconds=repeats[0].audio_seconds,
            total=statistics.median(t.total for t in repeats),
            encode=statistics.median(t.encode for t in repeats),
            prefill=statistics.median(t.prefill for t in repeats),
            decode=statistics.median(t.decode for t in repeats),
            first_token=statistics.median(t.first_token for t in repeats),
            tokens=repeats[0].tokens,
            # An empty repeat makes the clip empty: a fast failure must not hide behind two good ones.
            text=min((t.text for t in repeats), key=len),
        )
        for clip, repeats in by_clip.items()
    ]


def bench_record(
    timings: Sequence[ClipTiming],
    *,
    system: str,
    engine: str,
    threads: int | None,
    load_seconds: float,
    first_call_seconds: float,
    peak_memory_bytes: int | None,
    disk_bytes: int | None,
    conditions: dict[str, Any],
) -> BenchRecord:
    """Aggregate the timings of one system.

    Raises:
        ValueError: no timing.
    """
    medians = median_timings(timings)
    if not medians:
        raise ValueError("a benchmark record needs at least one timing")
    audio = sum(t.audio_seconds for t in medians)
    decode = sum(t.decode for t in medians)
    return BenchRecord(
        system=system,
        engine=engine,
        threads=threads,
        clips=len(medians),
        repeats=min(t.repeat for t in medians),
        audio_seconds=audio,
        load_seconds=load_seconds,
        first_call_seconds=first_call_seconds,
        real_time_factor=sum(t.total for t in medians) / audio,
        decode_tokens_per_second=sum(t.tokens for t in medians) / decode if decode else None,
        first_token_seconds=statistics.median(t.first_token for t in medians) or None,
        encode_seconds=sum(t.encode for t in medians) or None,
        prefill_seconds=sum(t.prefill for t in medians) or None,
        decode_seconds=decode or None,
        peak_memory_bytes=peak_memory_bytes,
        disk_bytes=disk_bytes,
        empty=sum(not t.text.strip() for t in medians),
        conditions=conditions,
    )
