"""A live stream of samples to events: partial texts while someone speaks, the final text when they stop."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError
from prunella.device_runtime.live.decode_worker import DecodeJob, DecodeWorker, Recognizer
from prunella.device_runtime.live.events import LiveEvent, LiveOptions
from prunella.device_runtime.live.local_agreement import LocalAgreement
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.speech_gate import LevelMeter, doubts
from prunella.device_runtime.sound.turn_detector import (
    FRAME,
    Silence,
    TurnClosed,
    TurnDetector,
    TurnEvent,
    TurnOpened,
    TurnPaused,
    TurnResumed,
)
from prunella.device_runtime.sound.vad import SileroVad, SpeechDetector
from prunella.device_runtime.transcript import Transcript


class LiveSession:
    """One stream. `feed` it samples from any source; events come from a thread of its own, in order.

    `feed` only detects speech and never waits for a decode, except when more than
    `max_backlog` seconds of finished utterances wait: who must not wait (a microphone) puts a bounded queue before it
    and counts what that loses.

    Args:
        recognizer: a `Transcriber`; used on the session's own thread.
        on_event: called with every event, on that thread.
        partials: a faster recognizer for the texts while someone speaks; by default the same.
        options: see `LiveOptions`.
        vad: judges the frames of this stream; by default a `SileroVad` of its own.
        lock: held while the recognizer decodes, to share it between sessions.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        on_event: Callable[[LiveEvent], None],
        *,
        partials: Recognizer | None = None,
        options: LiveOptions | None = None,
        vad: SpeechDetector | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.options = options or LiveOptions()
        self._on_event = on_event
        self._vad = vad or SileroVad()
        self._detector = TurnDetector(self.options.turns)
        self._worker = DecodeWorker(
            recognizer, partials=partials, lock=lock, max_backlog=self.options.max_backlog
        )
        self._frames: deque[tuple[Float32, float]] = deque()  # with the moment of capture
        self._base = 0  # index of the first sample in `_frames`
        self._rest = np.zeros(0, np.float32)
        self._fed = 0
        self._drops: deque[tuple[int, int]] = deque([(0, 0)])  # (sample index, samples lost before it in all)
        self._reported_drops = 0
        self._next_partial = 0
        self._paused = False
        self._agreement = LocalAgreement()
        self._finished = False
        self._level = LevelMeter()
        self._words = self._heard = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of a finished stream: why words may be missing or wrong."""
        if not self._fed:
            return ()
        return doubts(self.seconds_fed, self._level.peak, heard=self._heard, words=self._words)

    @property
    def seconds_fed(self) -> float:
        return self._fed / SAMPLE_RATE

    @property
    def backlog(self) -> float:
        """Seconds of finished utterances that are not yet decoded."""
        return self._worker.backlog

    @property
    def seconds_held(self) -> float:
        """Seconds of audio in memory: the open utterance, and what may be the beginning of the next."""
        return FRAME * len(self._frames) / SAMPLE_RATE

    def wait(self) -> None:
        """Return when the utterances that are finished so far were delivered.

        Raises:
            ClosedError: it was closed from another thread before that.
            whatever a decode raised.
        """
        self._worker.wait()

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()

    def feed(self, samples: npt.ArrayLike, *, dropped: int = 0, captured: float | None = None) -> None:
        """Take in the next samples, of any number.

        Args:
            samples: (n,) float32 in [-1, 1], mono at 16 kHz.
            dropped: samples that the source lost just before these.
            captured: `time.perf_counter()` when the last of them was captured; now, if not given.

        Raises:
            AudioError: NaN or infinite samples, or another shape.
            RuntimeError: the session is finished.
            ClosedError: it was closed from another thread while this waited for its backlog.
            Exception: whatever a decode raised.
        """
        if self._finished:
            raise RuntimeError("this session is finished: open a new one")
        block = np.asarray(samples, np.float32)
        if block.ndim != 1:
            raise AudioError(f"live audio must be samples of shape (n,), got shape {block.shape}")
        if not np.isfinite(block).all():
            raise AudioError("live audio has NaN or infinite samples: correct what makes it")
        moment = time.perf_counter() if captured is None else captured
        if dropped:
            self._drops.append((self._fed, self._drops[-1][1] + dropped))
        self._fed += len(block)
        self._level.take(block)
        block = np.concatenate((self._rest, block))
        whole = len(block) // FRAME * FRAME
        self._rest = block[whole:].copy()
        for begin in range(0, whole, FRAME):
            frame = block[begin : begin + FRAME]
            self._frames.append((frame, moment))
            energy = float(frame @ frame)
            self._handle(self._detector.push(self._vad(frame), energy))
            self._partial()
            self._forget()

    def finish(self) -> None:
        """The stream has ended: close an open utterance and return when its final text was delivered.

        Raises:
            ClosedError: it was closed from another thread before that.
            Exception: whatever a decode raised.
        """
        if not self._finished:
            self._finished = True
            try:
                rest = self._rest
                self._frames.append((rest, time.perf_counter()))
                self._handle(self._detector.finish(len(rest)))
                self.wait()
            finally:
                self._worker.stop()

    def close(self) -> None:
        """End at once, from any thread; what was said and not yet delivered is lost, who waits gets a `ClosedError`."""
        self._finished = True
        self._worker.stop()

    def _handle(self, events: list[TurnEvent]) -> None:
        for event in events:
            self._paused = isinstance(event, TurnPaused)
            if isinstance(event, Silence):
                self._silence(event.start, event.stop, None)
            elif isinstance(event, TurnOpened):
                self._agreement = LocalAgreement()
                self._plan_partial(event.start)
            elif isinstance(event, TurnPaused):
                if self.options.speculate:
                    self._guess(event.utterance_id, event.start, event.stop, speculative=True)
            elif isinstance(event, TurnResumed):
                self._worker.drop_guess()
            else:
                self._close(event)

    def _partial(self) -> None:
        start = self._detector.open_since
        now = self._base + FRAME * len(self._frames)
        # In a pause everything was said, and is being guessed: a partial would come between guess and final.
        guessed = self._paused and self.options.speculate
        if start is not None and self.options.partial_interval and now >= self._next_partial and not guessed:
            self._guess(self._detector.utterance_id, start, now, speculative=False)
            self._plan_partial(start)

    def _plan_partial(self, start: int) -> None:
        now = self._base + FRAME * len(self._frames)
        interval = max(
            self.options.partial_interval * SAMPLE_RATE, self.options.partial_share * (now - start)
        )
        self._next_partial = now + int(interval)

    def _guess(self, utterance_id: int, start: int, stop: int, *, speculative: bool) -> None:
        agreement = self._agreement
        t0, t1 = self._seconds(start), self._seconds(stop)

        def deliver(transcript: Transcript, _: bool) -> None:
            if agreement.update(transcript.text):
                self._on_event(LiveEvent("partial", utterance_id, t0, t1, agreement.text))

        job = DecodeJob(utterance_id, start, stop, self._samples(start, stop), speculative)
        self._worker.put_guess(job, deliver)

    def _close(self, turn: TurnClosed) -> None:
        agreement = self._agreement
        captured = self._moment(turn.speech_stop)
        seen = time.perf_counter()
        t0, t1, end = (self._seconds(index) for index in (turn.start, turn.stop, turn.speech_stop))
        drops = self._take_drops(turn.stop)

        def deliver(transcript: Transcript, guessed: bool) -> None:
            self._words |= bool(transcript.text)
            self._heard |= transcript.finish_reason not in ("silence", "phrase", "no-phrase")
            if not (transcript.text or agreement.text):
                self._on_event(LiveEvent("silence", turn.utterance_id, t0, t1, drops=drops))
                return
            now = time.perf_counter()
            spent = transcript.timings
            timings = {
                "latency": now - captured,
                "after_turn": now - seen,
                "encode": spent.encode,
                "prefill": spent.prefill,
                "decode": spent.decode,
                "compute": spent.total,
            }
            self._on_event(
                LiveEvent(
                    "final",
                    turn.utterance_id,
                    t0,
                    t1,
                    transcript.text,
                    end,
                    timings,
                    guessed,
                    drops,
                    transcript,
                )
            )

        job = DecodeJob(turn.utterance_id, turn.start, turn.stop, self._samples(turn.start, turn.stop))
        self._worker.put_final(job, deliver)

    def _silence(self, start: int, stop: int, utterance_id: int | None) -> None:
        event = LiveEvent(
            "silence",
            utterance_id,
            self._seconds(start),
            self._seconds(stop),
            drops=self._take_drops(stop),
        )
        self._worker.put_call(functools.partial(self._on_event, event))

    def _samples(self, start: int, stop: int) -> Float32:
        first = (start - self._base) // FRAME
        last = -(-(stop - self._base) // FRAME)
        frames = [self._frames[index][0] for index in range(first, min(last, len(self._frames)))]
        return np.concatenate(frames)[: stop - start]

    def _moment(self, stop: int) -> float:
        index = (stop - 1 - self._base) // FRAME
        return self._frames[max(0, min(index, len(self._frames) - 1))][1]

    def _forget(self) -> None:
        needed = self._detector.needed_from
        while self._base + FRAME <= needed:
            self._frames.popleft()
            self._base += FRAME

    def _seconds(self, index: int) -> float:
        lost = next(total for begin, total in reversed(self._drops) if begin <= index)
        return (index + lost) / SAMPLE_RATE

    def _take_drops(self, stop: int) -> int:
        total = next(total for begin, total in reversed(self._drops) if begin <= stop)
        fresh, self._reported_drops = total - self._reported_drops, total
        while len(self._drops) > 1 and self._drops[1][0] <= stop:  # ranges come in order
            self._drops.popleft()
        return fresh
