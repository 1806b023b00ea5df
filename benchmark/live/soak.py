"""Does a live session hold? Hours of speech at known times, real time with a busy decoder, and a forced overload.

    python -m prunella.benchmark.live.soak BUNDLE --speech MANIFEST ... [--minutes 30]

Decodes as `prunella listen` does: final texts with beams where they pay, texts while someone speaks greedily. One JSON
line per part goes to stdout; the exit code is 1 if one did not hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy.typing as npt
import psutil

from prunella.benchmark.live.judge import compare, tiled
from prunella.benchmark.live.stream import PacedSource, SpeechAtKnownTimes
from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.listen import listen
from prunella.device_runtime.live.decode_worker import Recognizer
from prunella.device_runtime.live.events import LiveEvent, LiveOptions
from prunella.device_runtime.live.session import LiveSession
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.transcript import Transcript
from prunella.evaluation.manifest import Utterance, read_manifest

_SHORT_PAUSE = (0.7, 1.5)  # seconds; of the parts that shall be busy
_SMALL_QUEUE = 1.0  # seconds; of a part that shall overflow
_MEMORY_EVERY = 5.0  # seconds of the stream
_MEMORY_SHARE = 3  # the last third of the stream is compared with the first
_DRIFT = 0.02


@dataclass(frozen=True)
class EnduranceReport:
    """A long stream, as fast as it goes.

    Attributes:
        missed: clips of which no utterance holds any part.
        false_triggers: texts whose speech lies in no clip.
        memory_mb: median resident memory of the first and of the last third of the stream; 0 where it cannot be read.
        tiled: the ranges of the events cover the stream without gap or overlap.
    """

    minutes: float
    times_real_time: float
    spoken: int
    missed: tuple[str, ...]
    false_triggers: tuple[str, ...]
    utterances: int
    memory_mb: tuple[float, float]
    tiled: bool

    @property
    def held(self) -> bool:
        first, last = self.memory_mb
        return not (self.missed or self.false_triggers) and self.tiled and last <= first * (1 + _DRIFT)


@dataclass(frozen=True)
class PacedReport:
    """A stream through the bounded queue at a given speed.

    `lost_events`: what the events say was lost, in samples; `dropped`: what the queue dropped.
    """

    name: str
    speed: float
    seconds: float
    spoken: int
    missed: int
    dropped: int
    lost_events: int
    median_latency: float
    held: bool


class Slowed:
    """A recognizer that takes `factor` times as long."""

    def __init__(self, recognizer: Recognizer, factor: float) -> None:
        self._recognizer = recognizer
        self.factor = factor

    def stream(
        self, samples: npt.ArrayLike, *, draft: Sequence[int] = ()
    ) -> Generator[str, None, Transcript]:
        began = time.perf_counter()
        transcript = yield from self._recognizer.stream(samples, draft=draft)
        time.sleep((time.perf_counter() - began) * (self.factor - 1))
        return transcript


def endure(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    minutes: float,
    *,
    partials: Recognizer | None = None,
) -> EnduranceReport:
    """Feed a stream as fast as the session takes it; nothing may be lost, missed or made up, and memory stays flat."""
    speech = SpeechAtKnownTimes(utterances, minutes * 60)
    events: list[LiveEvent] = []
    memory: list[float] = []
    began = time.perf_counter()

    def keep(event: LiveEvent) -> None:
        events.append(replace(event, transcript=None))

    with LiveSession(recognizer, keep, partials=partials) as session:
        for block in speech:
            session.feed(block)
            if session.seconds_fed >= _MEMORY_EVERY * (len(memory) + 1):
                memory.append(resident_mb())
    wall = time.perf_counter() - began
    missed, made_up = compare(events, speech.spoken)
    third = max(1, len(memory) // _MEMORY_SHARE)
    return EnduranceReport(
        minutes=minutes,
        times_real_time=round(minutes * 60 / wall, 2),
        spoken=len(speech.spoken),
        missed=tuple(f"{clip.t0:.1f} s {clip.clip}: {clip.text}" for clip in missed),
        false_triggers=tuple(f"{event.t0:.1f} s: {event.text}" for event in made_up),
        utterances=sum(event.type == "final" for event in events),
        memory_mb=(
            round(statistics.median(memory[:third]), 1),
            round(statistics.median(memory[-third:]), 1),
        ),
        tiled=tiled(events, minutes * 60),
    )


def in_real_time(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    seconds: float,
    *,
    partials: Recognizer | None = None,
) -> PacedReport:
    """Real time, with partial texts so often that the decoder is always busy while someone speaks: nothing is lost."""
    options = LiveOptions(partial_interval=0.1, partial_share=0.0)
    source, speech, events = _paced(recognizer, partials, utterances, seconds, 1.0, 30.0, options)
    missed, _ = compare(events, speech.spoken)
    return _report(
        "real time",
        1.0,
        seconds,
        source,
        speech,
        events,
        len(missed),
        bool(speech.spoken) and source.dropped == 0 and not missed,
    )


def overloaded(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    seconds: float,
    *,
    speed: float = 16.0,
    partials: Recognizer | None = None,
) -> tuple[PacedReport, PacedReport]:
    """A decoder slowed down ten times, fed at `speed` times real time into small buffers; then both as usual.

    Held: what was dropped is counted and told, sample by sample; afterwards nothing is lost and nothing missed.
    """
    options = LiveOptions(max_backlog=2.0)
    slow = Slowed(recognizer, 10.0)
    quick = slow if partials is None else Slowed(partials, 10.0)
    source, speech, events = _paced(slow, quick, utterances, seconds, speed, _SMALL_QUEUE, options)
    lost = sum(event.drops for event in events)
    missed, _ = compare(events, speech.spoken)
    overload = _report(
        "overload",
        speed,
        seconds,
        source,
        speech,
        events,
        len(missed),
        source.dropped > 0 and lost == source.dropped and bool(events) and tiled(events, seconds),
    )
    recovered = _recovery(recognizer, partials, utterances, seconds, speed, options)
    return overload, recovered


def resident_mb() -> float:
    """Memory of this process in MB."""
    return float(psutil.Process().memory_info().rss) / 1e6


def _recovery(
    recognizer: Recognizer,
    partials: Recognizer | None,
    utterances: Sequence[Utterance],
    seconds: float,
    speed: float,
    options: LiveOptions,
) -> PacedReport:
    """One session: overloaded for a while, then at real time; only what comes a while after is judged."""
    slow = Slowed(recognizer, 10.0)
    quick = slow if partials is None else Slowed(partials, 10.0)
    speech = SpeechAtKnownTimes(utterances, seconds * 2, seed=1, pause=_SHORT_PAUSE)
    source = PacedSource(iter(speech), speed=speed, queue_seconds=_SMALL_QUEUE)

    def relax() -> None:
        slow.factor = quick.factor = source.speed = 1.0

    source.blocks = _call_after(source.blocks, seconds, relax)
    events: list[LiveEvent] = []
    listen(slow, source, events.append, options, partials=quick)
    settled = seconds + seconds / 4
    late = [clip for clip in speech.spoken if clip.t0 > settled]
    missed, _ = compare(events, late)
    lost_late = sum(event.drops for event in events if event.t0 > settled)
    held = source.dropped > 0 and lost_late == 0 and bool(late) and not missed
    return _report("after the overload", 1.0, seconds, source, speech, events, len(missed), held)


def _call_after(blocks: Iterator[Float32], seconds: float, call: Callable[[], None]) -> Iterator[Float32]:
    fed = 0
    for block in blocks:
        yield block
        fed += len(block)
        if fed >= seconds * SAMPLE_RATE > fed - len(block):
            call()


def _paced(
    recognizer: Recognizer,
    partials: Recognizer | None,
    utterances: Sequence[Utterance],
    seconds: float,
    speed: float,
    queue_seconds: float,
    options: LiveOptions,
) -> tuple[PacedSource, SpeechAtKnownTimes, list[LiveEvent]]:
    speech = SpeechAtKnownTimes(utterances, seconds, pause=_SHORT_PAUSE)
    source = PacedSource(iter(speech), speed=speed, queue_seconds=queue_seconds)
    events: list[LiveEvent] = []
    listen(recognizer, source, events.append, options, partials=partials)
    return source, speech, events


def _report(
    name: str,
    speed: float,
    seconds: float,
    source: PacedSource,
    speech: SpeechAtKnownTimes,
    events: Sequence[LiveEvent],
    missed: int,
    held: bool,
) -> PacedReport:
    latencies = [event.timings["latency"] for event in events if event.timings] or [0.0]
    return PacedReport(
        name,
        speed,
        seconds,
        len(speech.spoken),
        missed,
        source.dropped,
        sum(event.drops for event in events),
        round(statistics.median(latencies), 3),
        held,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--speech", required=True, nargs="+", metavar="MANIFEST", help="clips that are played in random order"
    )
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="of the long stream (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="of the real-time and overload parts (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    utterances = [row for manifest in args.speech for row in read_manifest(manifest).utterances]
    recognizer = open_transcriber(args.bundle).with_options(beams=0)
    # One utterance of the greatest length: the engine then holds all the memory that it can ever need.
    recognizer.warm_up(LiveOptions().turns.maximum)
    held = True
    for part in _parts(recognizer, recognizer.with_options(beams=1), utterances, args.minutes, args.seconds):
        held &= part.held
        sys.stdout.write(json.dumps({**asdict(part), "held": part.held}, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    return 0 if held else 1


def _parts(
    recognizer: Recognizer,
    partials: Recognizer,
    utterances: Sequence[Utterance],
    minutes: float,
    seconds: float,
) -> Iterator[EnduranceReport | PacedReport]:
    yield endure(recognizer, utterances, minutes, partials=partials)
    yield in_real_time(recognizer, utterances, seconds, partials=partials)
    yield from overloaded(recognizer, utterances, seconds, partials=partials)


if __name__ == "__main__":
    sys.exit(main())
