"""What a model writes when nobody speaks: minutes of noise, tones, silence and clicks, with and without the guards.

    python -m prunella.benchmark.live.hallucination BUNDLE [--minutes 10]

One JSON line per kind of audio goes to stdout: how many texts the model alone writes (every `--piece` seconds of it are
transcribed, with beams where they pay and guards off), the model with its own guards (silence gate, repeat stop), and a
live session, as `prunella listen` is. The exit code is 1 if the live session wrote anything.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from prunella.benchmark.live.stream import not_speech
from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.live.decode_worker import Recognizer
from prunella.device_runtime.live.events import LiveEvent
from prunella.device_runtime.live.session import LiveSession
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.transcriber import Transcriber


@dataclass(frozen=True)
class HallucinationCount:
    """Texts written over `seconds` of one kind of audio that is not speech.

    Attributes:
        pieces: how many times the model was asked.
        model_alone: of them, how many gave a text with the guards off.
        with_guards: likewise, with the guards of the transcriber on.
        live_utterances: how often the live session believed that someone spoke.
        live_texts: what it wrote.
        example: a text of the model alone.
    """

    kind: str
    seconds: float
    pieces: int
    model_alone: int
    with_guards: int
    live_utterances: int
    live_texts: tuple[str, ...]
    example: str


def count_hallucinations(
    transcriber: Transcriber,
    minutes: float,
    piece_seconds: float = 5.0,
    seed: int = 0,
    *,
    partials: Recognizer | None = None,
) -> Iterator[HallucinationCount]:
    """Count texts over `not_speech`, kind by kind, all kinds in equal parts of `minutes`; `partials` as in `LiveSession`."""
    stream = not_speech(minutes * 60, seed)
    for kind, blocks in itertools.groupby(stream, key=lambda pair: pair[0]):
        samples = np.concatenate([block for _, block in blocks])
        size = int(piece_seconds * SAMPLE_RATE)
        pieces = [samples[begin : begin + size] for begin in range(0, len(samples), size)]
        alone = _texts(transcriber, pieces, guards=False)
        guarded = _texts(transcriber, pieces, guards=True)
        events: list[LiveEvent] = []
        with LiveSession(transcriber, events.append, partials=partials) as session:
            session.feed(samples)
        yield HallucinationCount(
            kind=kind,
            seconds=len(samples) / SAMPLE_RATE,
            pieces=len(pieces),
            model_alone=len(alone),
            with_guards=len(guarded),
            live_utterances=len({event.utterance_id for event in events} - {None}),
            live_texts=tuple(event.text for event in events if event.type == "final" and event.text),
            example=alone[0][:80] if alone else "",
        )


def _texts(transcriber: Transcriber, pieces: Sequence[Float32], *, guards: bool) -> list[str]:
    told = transcriber.with_options(guards=guards)
    return [text for piece in pieces if (text := told.transcribe(piece).text)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--minutes", type=float, default=10.0, help="of audio in all (default: %(default)s)")
    parser.add_argument(
        "--piece",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds the model alone gets (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    transcriber = open_transcriber(args.bundle).with_options(beams=0)
    wrote = 0
    for count in count_hallucinations(
        transcriber, args.minutes, args.piece, partials=transcriber.with_options(beams=1)
    ):
        wrote += len(count.live_texts)
        sys.stdout.write(json.dumps(asdict(count), ensure_ascii=False) + "\n")
        sys.stdout.flush()
    return int(wrote > 0)


if __name__ == "__main__":
    sys.exit(main())
