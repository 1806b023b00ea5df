"""Whether the events of a live session are right, given what was said when."""

from __future__ import annotations

from collections.abc import Sequence

from prunella.benchmark.live.stream import Spoken
from prunella.device_runtime.live.events import LiveEvent
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE


def compare(events: Sequence[LiveEvent], spoken: Sequence[Spoken]) -> tuple[list[Spoken], list[LiveEvent]]:
    """Clips that no text covers, and texts whose speech lies in no clip."""
    finals = [event for event in events if event.type == "final" and event.text]

    def overlap(event: LiveEvent, clip: Spoken) -> float:
        return min(event.speech_end or event.t1, clip.t1) - max(event.t0, clip.t0)

    missed = [clip for clip in spoken if not any(overlap(event, clip) > 0.1 for event in finals)]
    made_up = [event for event in finals if not any(overlap(event, clip) > 0 for clip in spoken)]
    return missed, made_up


def tiled(events: Sequence[LiveEvent], seconds: float) -> bool:
    """Whether the ranges of the events cover `seconds` of stream, in order, without gap or overlap."""
    ranges = [event for event in events if event.type != "partial"]
    position = 0.0
    for event in ranges:
        if abs(event.t0 - position) > 1e-6:
            return False
        position = event.t1
    return abs(position - seconds) < 1.0 / SAMPLE_RATE
