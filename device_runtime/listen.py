"""A microphone to text, live.

Final texts go to stdout, one a line; with --json every event does: partial, final and silence, as JSON lines. All else
goes to stderr. Ctrl-C ends the recording, and what was said until then is still transcribed; a second one quits.

"-" reads standard input in place of a microphone: a WAV, or raw 16-bit PCM.

    arecord -q -f S16_LE -r 16000 | prunella listen BUNDLE -
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Protocol

from prunella.device_runtime.base.errors import AudioError, UsageError
from prunella.device_runtime.base.service_manager import READY, Watchdog, notify
from prunella.device_runtime.base.standard_streams import piped
from prunella.device_runtime.live.audio_block import AudioBlock
from prunella.device_runtime.live.decode_worker import Recognizer
from prunella.device_runtime.live.events import LiveEvent, LiveOptions
from prunella.device_runtime.live.microphone import Microphone, check_tap
from prunella.device_runtime.live.pcm_stream import PcmFormat, PcmStream
from prunella.device_runtime.live.session import LiveSession
from prunella.device_runtime.options import LIVE_BEAMS_HELP, add_bundle, add_runtime_options, open_from
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.turn_detector import TurnOptions


class Source(Protocol):
    """Where live audio comes from."""

    def __iter__(self) -> Iterator[AudioBlock]: ...

    def stop(self) -> None:
        """End the iteration after what was recorded."""
        ...


def listen(
    recognizer: Recognizer,
    source: Source,
    on_event: Callable[[LiveEvent], None],
    options: LiveOptions | None = None,
    *,
    partials: Recognizer | None = None,
) -> tuple[str, ...]:
    """Transcribe a live source until it ends, or until `source.stop()` was called: what was said is then delivered.

    Args:
        recognizer: for example a `Transcriber`.
        source: a `Microphone`, a `PcmStream`, or anything that yields blocks.
        on_event: called with every event, in order, on another thread.
        partials: a faster recognizer for the texts while someone speaks; by default the same.

    Returns:
        Why words may be missing, where there were none at all, in words.
    """
    watchdog = Watchdog()
    with LiveSession(recognizer, on_event, partials=partials, options=options) as session:
        for block in source:
            session.feed(block.samples, dropped=block.dropped, captured=block.captured)
            watchdog.alive()  # a microphone that delivers nothing any more gives no sign
    return session.warnings


class Printer:
    """Events to stdout: the final texts, or as JSON lines all events. Without JSON, the text that is still growing stands
    on the last line of stderr, if that is a terminal, and losses are told there."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._live = sys.stderr.isatty() and not as_json
        self.latencies: list[float] = []
        self.drops = 0
        self.texts = 0

    def __call__(self, event: LiveEvent) -> None:
        self.drops += event.drops
        self.texts += event.type == "final" and bool(event.text)
        if event.timings is not None:
            self.latencies.append(event.timings["latency"])
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[K" + (event.text[-width:] if event.type == "partial" else ""))
            sys.stderr.flush()
        if self._json:
            line = json.dumps(event.to_json(), ensure_ascii=False)
        elif event.type == "final" and event.text:
            line = event.text
        else:
            line = ""
        if event.drops and not self._json:
            _tell(f"{event.drops / SAMPLE_RATE:.2f} s of audio were lost before {event.t1:.1f} s")
        if line:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = LiveOptions()
    add_bundle(parser)
    # An option, though it looks like an argument: argparse would take it for BUNDLE, or only right behind it.
    parser.add_argument(
        "-", dest="stdin", action="store_true", help="read standard input, WAV or raw 16-bit PCM"
    )
    parser.add_argument(
        "--device", metavar="D", help="number or name of the microphone (`prunella devices` lists them)"
    )
    parser.add_argument("--json", action="store_true", help="every event as one JSON line on stdout")
    parser.add_argument(
        "--end-silence",
        type=float,
        metavar="S",
        default=defaults.turns.end_silence,
        help="seconds of silence that end an utterance (default: %(default)s)",
    )
    parser.add_argument(
        "--partial-interval",
        type=float,
        metavar="S",
        default=defaults.partial_interval,
        help="seconds between partial texts, 0 for none (default: %(default)s)",
    )
    add_runtime_options(parser, beams_help=LIVE_BEAMS_HELP)
    parser.add_argument("--rate", type=int, default=SAMPLE_RATE, help="of raw PCM (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=1, help="of raw PCM (default: %(default)s)")
    parser.add_argument("--tap", metavar="WAV", help="also write what the microphone delivered to this file")


def run(args: argparse.Namespace) -> int:
    if args.stdin:
        piped()
    if args.stdin and (args.device or args.tap is not None):
        raise UsageError("--device and --tap belong to a microphone: leave them out with '-'")
    if args.tap is not None and not check_tap(args.tap).parent.is_dir():
        raise UsageError(f"the tap {args.tap} cannot be written: its folder does not exist; make it first")
    turns = TurnOptions()
    turns = replace(turns, end_silence=args.end_silence, tail=min(turns.tail, args.end_silence))
    options = LiveOptions(turns, partial_interval=max(0.0, args.partial_interval))
    transcriber = open_from(args).with_options(beams=args.beams)
    transcriber.warm_up()
    printer = Printer(as_json=args.json)
    with _open_source(args) as source, _stopped_by_signals(source):
        notify(READY)
        warnings = listen(transcriber, source, printer, options, partials=transcriber.with_options(beams=1))
        if isinstance(source, PcmStream) and not printer.texts:
            warnings += _taken_for(source)
    for warning in warnings:
        _tell(warning)
    if printer.latencies:
        _tell(
            f"{len(printer.latencies)} utterances; from the last word to the text: median "
            f"{statistics.median(printer.latencies):.2f} s; {printer.drops / SAMPLE_RATE:.2f} s of audio lost"
        )
    return 0


@contextmanager
def _open_source(args: argparse.Namespace) -> Iterator[Source]:
    if args.stdin:
        stream = PcmStream(piped(), PcmFormat(args.rate, args.channels))
        _tell(f"reading standard input, {stream.format.rate} Hz, {stream.format.channels} channel(s)")
        yield stream
        if not stream.frames and not stream.stopped:
            raise AudioError("nothing came on standard input: look at what the program before the pipe says")
        return
    with Microphone(args.device, tap=args.tap, tell=_tell) as microphone:
        _tell(
            f"listening to {microphone.device.name}, {microphone.rate} Hz, {microphone.channels} channel(s); "
            "Ctrl-C ends it"
        )
        yield microphone
    if microphone.overflows:
        _tell(f"PortAudio lost samples {microphone.overflows} times: this machine is too busy")


def _taken_for(stream: PcmStream) -> tuple[str, ...]:
    """Where nothing was understood: as what the samples were read, if nothing but the options said so."""
    if stream.headed or not stream.frames:
        return ()
    form = stream.format
    return (
        f"no words in {stream.frames / form.rate:.1f} s of what was taken for raw 16-bit samples at {form.rate} Hz, "
        f"{form.channels} channel(s): if it is something else, pipe it through `ffmpeg -i - -f wav -`",
    )


@contextmanager
def _stopped_by_signals(source: Source) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) end the source; the second interrupts whatever runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        source.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _tell(line: str) -> None:
    sys.stderr.write(f"prunella: {line}\n")
    sys.stderr.flush()
