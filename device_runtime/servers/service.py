"""One model behind any number of connections: slots, turns at the engine, and what a request gets back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError, PrunellaError
from prunella.device_runtime.bundle import Language, find_language
from prunella.device_runtime.live.decode_worker import Recognizer
from prunella.device_runtime.servers.model_summary import ModelSummary
from prunella.device_runtime.servers.subtitles import quiet_spans
from prunella.device_runtime.servers.turns import Turns
from prunella.device_runtime.sound.audio import Audio
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.speech_gate import LevelMeter, doubts
from prunella.device_runtime.sound.turn_detector import FRAME
from prunella.device_runtime.sound.utterances import Stretch, find_utterances
from prunella.device_runtime.sound.vad import SileroVad, SpeechDetector
from prunella.device_runtime.transcript import Timings, Transcript, main_language

Result = TypeVar("Result")

_LOOK = 0.25  # seconds between two looks whether a client is still there
PHRASES_BYTES = 64 * 1024  # of a request's or a session's phrases


class BusyError(PrunellaError):
    """No slot is free. `of_client`: because this client has all that one may have."""

    def __init__(self, message: str, *, of_client: bool = False) -> None:
        super().__init__(message)
        self.of_client = of_client


class CancelledError(PrunellaError):
    """Whoever asked has gone."""


@dataclass(frozen=True)
class Limits:
    """What one server takes."""

    upload_bytes: int = 100_000_000
    seconds: float = 3_600.0  # of one recording
    requests: int = 8  # at once: one is decoded, the others wait
    requests_per_client: int = 4
    live: int = 4  # microphones at once
    idle_seconds: float = 30.0  # that a client may keep a connection without sending what it owes
    upload_seconds: float = 600.0  # that an upload may take in all

    @property
    def connections(self) -> int:
        """That are open at once, at each of the ports, whatever they do."""
        return 4 * (self.requests + self.live)


@dataclass(frozen=True)
class Utterance:
    """One stretch of speech; `t0`, `t1` and the pauses in it are seconds from the start of the recording."""

    t0: float
    t1: float
    transcript: Transcript
    pauses: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Recognition:
    """A recording's text, utterance by utterance.

    Attributes:
        seconds: of the recording.
        utterances: those in which something was understood.
        waited: seconds for a turn at the engine.
        warnings: why words may be missing, in words.
    """

    seconds: float
    utterances: tuple[Utterance, ...] = ()
    waited: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(filter(None, (utterance.transcript.text for utterance in self.utterances)))

    @property
    def language(self) -> str | None:
        """See `Transcript.language`."""
        return main_language(
            segment for utterance in self.utterances for segment in utterance.transcript.segments
        )

    @property
    def timings(self) -> Timings:
        """Summed over utterances; `audio` is their length."""
        return sum((utterance.transcript.timings for utterance in self.utterances), Timings())


@dataclass
class TranscriptionService:
    """Shares a model. Thread-safe; the engine does one utterance at a time, whoever asks first (`lock`).

    Recordings wait for one another in `uploads`, as files: only the one whose turn it is is decoded and has a thread.
    Spoken commands (Wyoming) do so in `commands`, so that none waits for the whole of a long file; between its
    utterances they and live sessions get the engine.

    Args:
        recordings: the recognizer of requests that bring no phrases of their own.
        model: the name under which it is listed.
        language: what it transcribes, as a BCP 47 code; "": the model finds out.
        languages: that a request may choose from; none: what one names is not followed.
        limits: see `Limits`.
        live: the recognizer of live sessions; None: that of recordings.
        partials: what live sessions use while someone speaks; None: the same.
        make_vad: a fresh speech detector for every recording.
        facts: what people are told of the model.
        with_phrases: a recognizer over the same engine that can say nothing but these templates; None: not offered.
        with_language: a recognizer like another one that is told the language, by its code; "": it finds out.
    """

    recordings: Recognizer
    model: str
    language: str = "en"
    limits: Limits = field(default_factory=Limits)
    live: Recognizer | None = None
    partials: Recognizer | None = None
    make_vad: Callable[[], SpeechDetector] = SileroVad
    with_phrases: Callable[[str], Recognizer] | None = None
    with_language: Callable[[Recognizer, str], Recognizer] | None = None
    languages: tuple[Language, ...] = ()
    facts: ModelSummary = field(default_factory=ModelSummary)
    lock: Turns = field(default_factory=Turns)
    uploads: Turns = field(default_factory=Turns)
    commands: Turns = field(default_factory=Turns)
    closing: bool = False  # take no more requests
    stop: threading.Event = field(
        default_factory=threading.Event
    )  # and give up those that are being worked on

    def __post_init__(self) -> None:
        self._clients: Counter[str] = Counter()
        self._live_sessions = 0
        self._counting = threading.Lock()
        # A thread for each that may be at work, so that none waits for another's: a live session feeds and is closed.
        self._threads = ThreadPoolExecutor(2 * self.limits.live + 2, "prunella-service")

    @property
    def busy(self) -> int:
        """Requests and live sessions that hold a slot."""
        return self._clients.total() + self._live_sessions

    @property
    def live_sessions(self) -> int:
        """Live sessions that hold a slot."""
        return self._live_sessions

    @contextlib.contextmanager
    def slot(self, client: str) -> Iterator[None]:
        """Hold one of the slots for requests.

        Raises:
            BusyError: none is free, for this client or at all.
        """
        with self._counting:
            if self.closing:
                raise BusyError("the server is shutting down: ask again when it is back")
            if self._clients[client] >= self.limits.requests_per_client:
                raise BusyError(
                    f"{self.limits.requests_per_client} requests of this client are being worked on, more are not "
                    "taken: wait for one of them",
                    of_client=True,
                )
            if self._clients.total() >= self.limits.requests:
                raise BusyError(f"all {self.limits.requests} places are taken: ask again in a moment")
            self._clients[client] += 1
        try:
            yield
        finally:
            with self._counting:
                self._clients[client] -= 1
                if not self._clients[client]:
                    del self._clients[client]

    @contextlib.contextmanager
    def live_slot(self) -> Iterator[None]:
        """Hold one of the slots for live sessions.

        Raises:
            BusyError: none is free.
        """
        with self._counting:
            if self.closing or self._live_sessions >= self.limits.live:
                raise BusyError(f"all {self.limits.live} live sessions are taken: try again in a moment")
            self._live_sessions += 1
        try:
            yield
        finally:
            with self._counting:
                self._live_sessions -= 1

    async def turn(
        self,
        turns: Turns,
        held: contextlib.ExitStack,
        gone: threading.Event,
        look: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Wait for a turn in `uploads` or `commands`, without a thread; it ends when `held` is closed.

        Args:
            look: awaited four times a second; sets `gone` if nobody waits any more.

        Raises:
            BusyError: the server is being stopped.
            CancelledError: `gone` was set.
        """
        ticket = turns.ask()
        held.callback(turns.give_up, ticket)
        await watch(asyncio.wrap_future(ticket), functools.partial(self._go_on, gone), look)

    def start(self, held: contextlib.ExitStack, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """Do work on a thread; what is held is given back when the thread is done, however its client went."""
        rest = held.pop_all()
        try:
            future = self._threads.submit(work)
        except BaseException:
            rest.close()
            raise
        future.add_done_callback(lambda _: rest.close())
        awaited = asyncio.wrap_future(future)
        awaited.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # its client may have gone
        return awaited

    async def on_thread(self, work: Callable[[], Result]) -> Result:
        """What a live session does on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _go_on(self, gone: threading.Event) -> None:
        if gone.is_set():
            raise CancelledError("whoever asked has gone")
        if self.stop.is_set():
            raise BusyError("the server was shut down before this was done: ask again when it is back")

    def find_language(self, asked: str | None) -> str | None:
        """The code of a language that a client names; "" for "auto", which leaves it to the model; None: as the server has it.

        Raises:
            UsageError: the model takes languages, and not this one.
        """
        if not (asked and asked.strip()) or not self.languages:
            return None
        found = find_language(self.languages, asked)
        return found.code if found else ""

    def choose(self, phrases: str | None, language: str | None = None, *, live: bool = False) -> Recognizer:
        """The recognizer for a request or a live session: over its own phrases, if it brings some, and in its language.

        Args:
            phrases: templates, a line each.
            language: from `find_language`.
            live: for a live session.

        Raises:
            UsageError: the phrases cannot be read.
            PrunellaError: this model cannot be held to phrases.
        """
        chosen = (self.live if live else None) or self.recordings
        if phrases and phrases.strip():
            if self.with_phrases is None:
                raise PrunellaError("this server takes no phrases: leave them out")
            chosen = self.with_phrases(phrases)
        return self._told(chosen, language)

    def choose_partials(self, phrases: str | None, language: str | None = None) -> Recognizer | None:
        """What a live session uses while someone speaks, see `choose`; None: the same."""
        if (phrases and phrases.strip()) or self.live is None or self.partials is None:
            return None
        return self._told(self.partials, language)

    def _told(self, recognizer: Recognizer, language: str | None) -> Recognizer:
        if language is None or self.with_language is None:
            return recognizer
        return self.with_language(recognizer, language)

    def recognize(
        self,
        samples: Float32 | Audio,
        recognizer: Recognizer | None = None,
        *,
        on_text: Callable[[int, str, float], None] | None = None,
        gone: threading.Event | None = None,
    ) -> Recognition:
        """Find the utterances of a recording and transcribe each. Blocks: call it on a thread.

        Args:
            samples: (n,) float32 at 16 kHz, or a recording that is read block by block.
            recognizer: from `choose`.
            on_text: called on this thread with an utterance's number, its text so far, and where in the recording it
                ends, in seconds.
            gone: once set, the work ends within a token, or a moment of looking for speech.

        Raises:
            AudioError: longer than the limit.
            BusyError: the server is being stopped and cannot wait.
            CancelledError: `gone` was set.
        """
        seconds = (samples.count if isinstance(samples, Audio) else len(samples)) / SAMPLE_RATE
        if seconds > self.limits.seconds:
            raise AudioError(
                f"{seconds:.0f} s of audio are too long: send at most {self.limits.seconds:.0f} s"
            )
        chosen = recognizer or self.recordings
        gone = gone or threading.Event()
        done: list[Utterance] = []
        waited = 0.0
        vad = self.make_vad()
        probabilities: list[float] = []

        def watched(frame: Float32) -> float:
            self._go_on(gone)
            probabilities.append(vad(frame))
            return probabilities[-1]

        level = LevelMeter()
        heard = False
        blocks = samples.blocks() if isinstance(samples, Audio) else [samples]
        for number, spoken in enumerate(find_utterances(level.measured(blocks), watched)):
            told = _teller(on_text, number, spoken.stop / SAMPLE_RATE)
            transcript, spent = self._in_turn(chosen, spoken, told, gone)
            waited += spent
            heard |= transcript.finish_reason not in ("silence", "phrase", "no-phrase")
            if transcript.text:
                done.append(_utterance(spoken, transcript, probabilities))
        notes = samples.notes if isinstance(samples, Audio) else ()
        notes += doubts(seconds, level.peak, heard=heard, words=bool(done))
        return Recognition(seconds, tuple(done), waited, notes)

    def _in_turn(
        self, recognizer: Recognizer, spoken: Stretch, on_text: Callable[[str], None], gone: threading.Event
    ) -> tuple[Transcript, float]:
        """Transcribe one utterance when it is its turn → its transcript, and the seconds for which it waited."""
        assert spoken.samples is not None
        asked = time.perf_counter()
        with self.lock:
            waited = time.perf_counter() - asked
            steps = recognizer.stream(spoken.samples)
            try:
                while True:
                    self._go_on(gone)
                    on_text(next(steps))
            except StopIteration as end:
                transcript: Transcript = end.value
            finally:
                steps.close()
        on_text(transcript.text)
        return transcript, waited


def _teller(
    on_text: Callable[[int, str, float], None] | None, number: int, until: float
) -> Callable[[str], None]:
    return lambda text: on_text(number, text, until) if on_text else None


def _utterance(spoken: Stretch, transcript: Transcript, probabilities: Sequence[float]) -> Utterance:
    """`probabilities`: of speech, of every frame of the recording."""
    first = spoken.start // FRAME
    frames = probabilities[first : -(-spoken.stop // FRAME)]
    pauses = quiet_spans(frames, first * FRAME / SAMPLE_RATE, FRAME / SAMPLE_RATE)
    return Utterance(spoken.start / SAMPLE_RATE, spoken.stop / SAMPLE_RATE, transcript, pauses)


async def watch(
    awaited: asyncio.Future[Result],
    check: Callable[[], None] = lambda: None,
    look: Callable[[], Awaitable[None]] | None = None,
) -> Result:
    """Wait, and four times a second `look` and `check`; what `check` raises ends the wait."""
    while not awaited.done():
        await asyncio.wait({awaited}, timeout=_LOOK)
        if look is not None and not awaited.done():
            await look()
        check()
    return await awaited
