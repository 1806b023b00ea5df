"""One thread that decodes for a live session: finals in order, guesses at what is still being said in between."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import ClosedError
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.transcript import Transcript


class Recognizer(Protocol):
    """What decodes: a `Transcriber`, or anything else that can be asked to stop between two texts."""

    def stream(
        self, samples: npt.ArrayLike, *, draft: Sequence[int] = ()
    ) -> Generator[str, None, Transcript]:
        """(n,) float32 at 16 kHz → texts so far, then the transcript. `draft` are tokens that were guessed before."""
        ...


@dataclass(frozen=True)
class DecodeJob:
    """Samples [start, stop) of an utterance. `speculative`: all of it, unless its speaker goes on."""

    utterance_id: int
    start: int
    stop: int
    samples: Float32
    speculative: bool = False

    @property
    def range(self) -> tuple[int, int, int]:
        return self.utterance_id, self.start, self.stop


Deliver = Callable[[Transcript, bool], None]


class DecodeWorker:
    """Runs decodes on a thread of its own, so that whoever feeds audio never waits for one.

    Finals come out in the order in which they were put in, with nothing in between skipped. Of guesses (partial and
    speculative ones) only the latest waits: under load there are fewer of them, and no backlog. A guess over exactly
    the samples of the final *is* the final, unless the quicker recognizer of `partials` made it; the tokens of the last guess are the draft of the next decode.

    Args:
        recognizer: used by this thread alone, under `lock` if there is one.
        partials: a faster one for guesses at what is still being said, whose tokens are the next draft; None: the same.
        lock: to share a recognizer between sessions.
        max_backlog: seconds of audio that may wait in finals; beyond it `put_final` waits.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        *,
        partials: Recognizer | None = None,
        lock: AbstractContextManager[Any] | None = None,
        max_backlog: float = 60.0,
    ) -> None:
        self._recognizer = recognizer
        self._partials = partials or recognizer
        self._lock = lock or threading.Lock()
        self._max_backlog = int(max_backlog * SAMPLE_RATE)
        self._state = threading.Condition()
        self._finals: deque[tuple[DecodeJob | None, Callable[..., None]]] = deque()
        self._guess: tuple[DecodeJob, Deliver] | None = None
        self._running: DecodeJob | None = None
        self._cancelled = False
        self._backlog = 0
        self._busy = False
        self._stopping = False
        self._error: BaseException | None = None
        self._draft: tuple[int, Sequence[int]] = (0, ())
        self._ready: tuple[tuple[int, int, int], Transcript] | None = None
        self._thread = threading.Thread(target=self._run, name="prunella-decode", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> float:
        """Seconds of audio in finals that are not yet decoded."""
        return self._backlog / SAMPLE_RATE

    def put_guess(self, job: DecodeJob, deliver: Deliver) -> None:
        """Decode when there is nothing better to do; replaces a guess that still waits."""
        with self._state:
            self._check()
            self._guess = (job, deliver)
            if job.speculative:  # worth more than any other guess that is being made
                self._cancelled |= self._running is not None and self._running.range != job.range
            self._state.notify_all()

    def drop_guess(self) -> None:
        """Forget a guess that still waits: its speaker went on."""
        with self._state:
            self._guess = None

    def put_final(self, job: DecodeJob, deliver: Deliver) -> None:
        """Decode this, or take the guess over the same samples; `deliver(transcript, was_guessed)` on the thread.

        Waits while the backlog is full.

        Raises:
            ClosedError: the worker was stopped, before or while this waited.
            whatever an earlier decode raised.
        """
        with self._state:
            while self._backlog and self._backlog + len(job.samples) > self._max_backlog and not self._ended:
                self._state.wait()
            self._check()
            self._backlog += len(job.samples)
            if self._guess is not None and self._guess[0].utterance_id == job.utterance_id:
                self._guess = None
            self._cancelled |= self._running is not None and self._running.range != job.range
            self._finals.append((job, deliver))
            self._state.notify_all()

    def put_call(self, call: Callable[[], None]) -> None:
        """Run `call()` on the thread, after the finals before it and before those after it."""
        with self._state:
            self._check()
            self._finals.append((None, call))
            self._state.notify_all()

    def wait(self) -> None:
        """Return when nothing is left to do.

        Raises:
            ClosedError: the worker was stopped before everything was done.
            whatever a decode raised.
        """
        with self._state:
            while not self._ended and (self._finals or self._guess or self._busy):
                self._state.wait()
            self._check()

    def stop(self) -> None:
        """End the thread within a text of the recognizer; what waits is not done, and who waits gets a `ClosedError`.

        Call `wait` before for an orderly end.
        """
        with self._state:
            self._stopping = self._cancelled = True
            self._state.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def _ended(self) -> bool:
        return self._stopping or self._error is not None

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._stopping:
            raise ClosedError("this stream was closed before its audio was transcribed: open a new one")

    def _run(self) -> None:
        while True:
            with self._state:
                self._busy = False
                self._state.notify_all()
                while not (self._stopping or self._finals or self._guess):
                    self._state.wait()
                if self._stopping:
                    return
                self._busy = True
                self._cancelled = False
                if self._finals:
                    (job, deliver), final = self._finals.popleft(), True
                elif self._guess:
                    (job, deliver), final = self._guess, False
                    self._guess = None
                self._running = None if final else job
            try:
                if job is None:
                    deliver()
                elif final:
                    self._final(job, deliver)
                else:
                    self._guessed(job, deliver)
            except BaseException as error:  # handed to the thread that feeds
                with self._state:
                    self._error = error
                    self._busy = False
                    self._state.notify_all()
                return

    def _final(self, job: DecodeJob, deliver: Deliver) -> None:
        if self._ready is not None and self._ready[0] == job.range:
            transcript, guessed = self._ready[1], True
        else:
            decoded = self._decode(job, stoppable=False)
            if decoded is None:  # stopped
                return
            transcript, guessed = decoded, False
        self._ready = None
        with self._state:
            self._backlog -= len(job.samples)
            self._state.notify_all()
        deliver(transcript, guessed)

    def _guessed(self, job: DecodeJob, deliver: Deliver) -> None:
        transcript = self._decode(job, stoppable=True)
        if transcript is None:
            return
        self._draft = (job.utterance_id, transcript.tokens)
        if job.speculative or self._partials is self._recognizer:
            self._ready = (job.range, transcript)
        deliver(transcript, True)

    def _decode(self, job: DecodeJob, *, stoppable: bool) -> Transcript | None:
        draft = self._draft[1] if self._draft[0] == job.utterance_id else ()
        recognizer = self._partials if stoppable and not job.speculative else self._recognizer
        with self._lock:
            steps = recognizer.stream(job.samples, draft=draft)
            while True:
                if self._stopping or (stoppable and self._cancelled):
                    steps.close()
                    return None
                try:
                    next(steps)
                except StopIteration as done:
                    transcript: Transcript = done.value
                    return transcript
