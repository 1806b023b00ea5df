"""A microphone as a stream of 16 kHz blocks: bounded, counted, and waited for when it is unplugged."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError, PrunellaError
from prunella.device_runtime.base.outputs import check_output_file
from prunella.device_runtime.live.audio_block import AudioBlock, LiveResampler
from prunella.device_runtime.live.capture_queue import CaptureQueue
from prunella.device_runtime.live.portaudio import (
    InputDevice,
    close_stream,
    find_device,
    is_active,
    open_input,
    restart,
    stable_name,
    start_stream,
)
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE

_SILENT_SECONDS = (
    5.0  # without a callback for so long, the device is gone; a busy machine can stall for a while
)
_FIRST_SECONDS = 2.0  # most that is waited for the first callback: only then does the device really record
RETRY_SECONDS = 1.0
_TAPPED_BY = "prunella"  # stands in a tap, so that it is known again


class Microphone:
    """Records when it is made; iterate it once, `stop` it from anywhere. Use it in a `with`: else whoever makes it and
    does not iterate it to its end must `close` it.

    PortAudio's callback only copies into a queue that holds `queue_seconds`; what does not fit is dropped, counted, and
    told with the next block. When the device vanishes the iteration waits until it is back, and the time in between
    counts as dropped.

    Args:
        device: number, name or part of a name; by default the system's.
        queue_seconds: audio that may wait for whoever iterates.
        tap: a WAV file to write what the device delivered to, at its own rate and channels, 32-bit float; one of an
            earlier run is replaced, nothing else.
        tell: called with one line when the device is lost or found again, or overruns inside PortAudio.

    Raises:
        AudioError: no PortAudio, no such device, or it cannot be opened.
        UsageError: the tap is a file that no microphone was tapped to.
    """

    def __init__(
        self,
        device: str | int | None = None,
        *,
        queue_seconds: float = 30.0,
        tap: str | Path | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._wanted = device
        self._queue_seconds = queue_seconds
        self._tell = tell or (lambda line: None)
        self._queue = CaptureQueue(0)
        self._stopping = threading.Event()
        self._called = threading.Event()
        self.overflows = 0  # times that PortAudio itself lost samples; it does not say how many
        self._told_overflows = 0
        self._tap_path = check_tap(tap) if tap is not None else None
        self._tap: Any = None
        try:
            self._open(find_device(device))
        except BaseException:
            if self._tap is not None:
                self._tap.close()
            raise

    @property
    def device(self) -> InputDevice:
        return self._device

    @property
    def dropped(self) -> int:
        """Samples at the device's rate that did not fit the queue since the device was opened."""
        return self._queue.dropped

    @property
    def rate(self) -> int:
        """Hz at which the device was opened."""
        return self._rate

    @property
    def channels(self) -> int:
        return self._channels

    def stop(self) -> None:
        """Record no more; the iteration ends after what was recorded. Safe in a signal handler."""
        self._stopping.set()
        self._queue.wake()

    def close(self) -> None:
        """Let the device go, whatever was recorded and not yet taken. May be called again."""
        self.stop()
        self._close()
        if self._tap is not None:
            self._tap.close()

    def __enter__(self) -> Microphone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Generator[AudioBlock, None, None]:
        try:
            gap = 0
            while True:
                yield from self._blocks(gap)
                if self._stopping.is_set():
                    return
                began = self._last_captured
                if not self._reopen():
                    return
                gap = round((time.perf_counter() - began) * SAMPLE_RATE)
        finally:
            self.close()

    def _blocks(self, gap: int) -> Iterator[AudioBlock]:
        """Blocks until the device is stopped or gone; `gap`: samples that were lost before the first."""
        resampler = LiveResampler(self._rate)
        stopped = False
        while True:
            try:
                item = self._queue.take(0.0 if stopped else 0.25)
            except queue.Empty:
                if stopped or self._gone():
                    break
                item = None
            if self._stopping.is_set() and not stopped:
                stopped = True
                self._close()  # after it, no callback adds to the queue any more
            if item is None:
                continue
            self._last_captured = item.moment
            if self._tap is not None:
                self._tap.write(item.frames)
            if self.overflows != self._told_overflows:
                self._told_overflows = self.overflows
                self._tell("PortAudio lost samples before they got here: this machine is too busy")
            dropped, gap = gap + round(item.lost * SAMPLE_RATE / self._rate), 0
            yield AudioBlock(resampler(item.frames), dropped, item.moment)
        lost = round(self._queue.lost_at_end() * SAMPLE_RATE / self._rate)
        yield AudioBlock(resampler.finish(), gap + lost, self._last_captured)

    def _open(self, device: InputDevice) -> None:
        self._stream = open_input(device, self._callback)
        try:
            self._start(device)
        except BaseException:
            self._close()
            raise

    def _start(self, device: InputDevice) -> None:
        self._device = device
        self._rate = int(self._stream.samplerate)
        self._channels = int(self._stream.channels)
        self._queue = CaptureQueue(int(self._queue_seconds * self._rate))
        self._last_captured = self._last_call = time.perf_counter()
        if self._tap_path is not None and self._tap is None:
            self._tap = _open_tap(self._tap_path, self._rate, self._channels)
        elif self._tap is not None and (self._tap.samplerate, self._tap.channels) != (
            self._rate,
            self._channels,
        ):
            self._tell("the microphone came back at another rate: the tap ends here")
            self._tap.close()
            self._tap = self._tap_path = None
        self._called.clear()
        start_stream(self._stream, device)
        self._called.wait(_FIRST_SECONDS)

    def _callback(self, frames: Float32, count: int, _: Any, status: Any) -> None:
        # On PortAudio's thread.
        self._last_call = time.perf_counter()
        self._called.set()
        if status.input_overflow:
            self.overflows += 1
        self._queue.put(frames, self._last_call)

    def _gone(self) -> bool:
        return not is_active(self._stream) or time.perf_counter() - self._last_call > _SILENT_SECONDS

    def _reopen(self) -> bool:
        """Wait for the device → whether it came back before `stop`."""
        name = stable_name(self._device) if self._wanted is not None else None
        self._tell(f"the microphone {self._device.name} is gone: waiting for it")
        self._close()
        while not self._stopping.is_set():
            restart()
            try:
                self._open(find_device(name))
            except PrunellaError:
                self._stopping.wait(RETRY_SECONDS)
                continue
            self._tell(f"the microphone {self._device.name} is back")
            return True
        return False

    def _close(self) -> None:
        close_stream(self._stream)


def check_tap(path: str | Path) -> Path:
    """Where a tap will really be written, links followed. One of an earlier run is replaced.

    Raises:
        UsageError: what is there is no tap, or nothing can be written there.
    """
    return check_output_file(path, "tap", _is_tap)


def _is_tap(path: Path) -> bool:
    import soundfile

    if not path.is_file():
        return False
    try:
        with path.open("rb") as file, soundfile.SoundFile(file) as found:
            return bool(found.software.startswith(_TAPPED_BY))
    except soundfile.SoundFileError:
        return False


def _open_tap(path: Path, rate: int, channels: int) -> Any:
    import soundfile

    try:
        tap = soundfile.SoundFile(os.fspath(path), "w", rate, channels, subtype="FLOAT", format="WAV")
        tap.software = _TAPPED_BY
        return tap
    except soundfile.SoundFileError as error:
        raise AudioError(f"the tap {path} cannot be written ({error}): name another file") from error


def level(block: Float32) -> float:
    """RMS of (n,) or (n, channels) samples in dBFS; -120 for digital silence."""
    power = float(np.mean(np.square(block, dtype=np.float64))) if block.size else 0.0
    return 10.0 * math.log10(max(power, 1e-12))
