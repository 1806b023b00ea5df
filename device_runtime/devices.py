"""The microphones of this machine, with how loud each is right now.

stdout has one line per device, `*` before the default; --json makes them JSON lines. The level is that of half a second
(dBFS: 0 is full scale, speech is around -30, a muted device far below -60). It ends within five seconds, whatever a
driver does. --meter shows one device's level: live on a terminal until Ctrl-C, else once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError
from prunella.device_runtime.live.microphone import Microphone, level
from prunella.device_runtime.live.portaudio import (
    InputDevice,
    close_stream,
    ends_in_time,
    find_device,
    input_devices,
    open_input,
    start_stream,
)
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE

SECONDS = 3.0  # that listing and measuring may take; a small board needs another for the start of Python
SPARE_SECONDS = 0.5  # for closing what was opened
_LEVEL_SECONDS = 0.5
_METER_FLOOR = -70.0  # dBFS
_METER_WIDTH = 40


@dataclass(frozen=True)
class Survey:
    """The devices that can record, and by `InputDevice.index` the level in dBFS or, in words, why there is none."""

    devices: tuple[InputDevice, ...]
    levels: Mapping[int, float | str]


def survey(device: str | int | None = None, *, every: bool = True, measure: bool = True) -> Survey:
    """List and measure the microphones, within a few seconds whatever a driver does.

    Args:
        device: as `find_device` takes it, for `every=False`: this one alone.
        every: all that there are.
        measure: open them all at once, the default one first; those that cannot be shared afterwards, in turn.

    Raises:
        AudioError: no microphone, or the drivers do not even list them in time.
    """
    until = time.monotonic() + SECONDS
    meters: dict[int, _Meter] = {}

    def work() -> None:
        for one in input_devices() if every else [find_device(device)]:
            meters[one.index] = _Meter(one)
        listed.set()
        waiting = sorted(meters.values(), key=lambda meter: not meter.device.default) if measure else []
        while waiting and time.monotonic() < until:
            opened = [meter for meter in waiting if meter.open()]
            waiting = [meter for meter in waiting if meter not in opened] if opened else []
            share = (until - time.monotonic()) / (2 if waiting else 1)
            enough = time.monotonic() + share
            for meter in opened:
                meter.enough.wait(max(0.0, enough - time.monotonic()))
            for meter in opened:
                meter.close()

    listed = threading.Event()
    if not ends_in_time(work, SECONDS + SPARE_SECONDS) and not listed.is_set():
        raise AudioError(
            "the sound system does not answer: restart it (PipeWire, PulseAudio), or unplug the device that hangs"
        )
    if not meters:
        raise AudioError("no microphone is there: plug one in, or check the sound server (pactl info)")
    found = tuple(meter.device for meter in meters.values())
    return Survey(found, {index: meter.result() for index, meter in meters.items()} if measure else {})


def levels(device: str | int | None = None, every: float = 0.1) -> Iterator[float]:
    """Levels of a microphone in dBFS, one every `every` seconds, until the iterator is closed.

    Raises:
        AudioError: as `Microphone`.
    """
    power = samples = 0.0
    with Microphone(device, queue_seconds=2.0) as microphone, closing(iter(microphone)) as blocks:
        for block in blocks:
            if len(block.samples):
                power += 10.0 ** (level(block.samples) / 10.0) * len(block.samples)
                samples += len(block.samples)
            if samples >= every * SAMPLE_RATE:
                yield 10.0 * math.log10(power / samples)
                power = samples = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object per device")
    parser.add_argument("--no-level", action="store_true", help="do not open the devices to measure them")
    parser.add_argument(
        "--meter",
        nargs="?",
        const="",
        metavar="D",
        help="show the level of this device (or the default): live on a terminal, else once",
    )


def run(args: argparse.Namespace) -> int:
    if args.meter is not None:
        return _meter(args.meter or None)
    found = survey(measure=not args.no_level)
    for device in found.devices:
        loudness = found.levels.get(device.index)
        if args.json:
            sys.stdout.write(json.dumps({**asdict(device), "dbfs": loudness}, ensure_ascii=False) + "\n")
            continue
        mark = "*" if device.default else " "
        text = f"{loudness} dBFS" if isinstance(loudness, float) else loudness or ""
        channels = str(device.channels) if device.recorded == device.channels else f"1 of {device.channels}"
        about = f"{device.host}, {device.rate} Hz, {channels} ch"
        sys.stdout.write(f"{mark} {device.index:>2}  {device.name}  ({about})  {text}".rstrip() + "\n")
    return 0


def _meter(device: str | None) -> int:
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        found = survey(device, every=False)
        (loudness,) = found.levels.values()
        name = found.devices[0].name
        if isinstance(loudness, str):
            raise AudioError(f"microphone {name}: {loudness}; choose another (`prunella devices`)")
        sys.stdout.write(f"{loudness} dBFS  {name}\n")
        return 0
    try:
        for loudness in levels(device):
            share = (max(_METER_FLOOR, loudness) - _METER_FLOOR) / -_METER_FLOOR
            bar = "#" * round(_METER_WIDTH * min(1.0, share))
            sys.stderr.write(f"\r{loudness:6.1f} dBFS |{bar:<{_METER_WIDTH}}|")
            sys.stderr.flush()
    except KeyboardInterrupt:
        sys.stderr.write("\n")
    return 0


class _Meter:
    """The level of one device over half a second, or over what it delivered until it is asked for."""

    def __init__(self, device: InputDevice) -> None:
        self.device = device
        self.enough = threading.Event()
        self._power = self._samples = 0.0
        self._state = "not measured: another device took the time"
        self._stream: Any = None

    def open(self) -> bool:
        """Let it record → whether it does."""
        self._state = "does not answer"
        try:
            stream = open_input(self.device, self._callback)
            self._wanted = _LEVEL_SECONDS * float(stream.samplerate)
            start_stream(stream, self.device)
        except AudioError:
            self._state = "cannot be opened"
            return False
        self._stream, self._state = stream, "delivers nothing"
        return True

    def close(self) -> None:
        close_stream(self._stream)

    def result(self) -> float | str:
        """dBFS, or why there is no level."""
        return round(10.0 * math.log10(self._power / self._samples), 1) if self._samples else self._state

    def _callback(self, frames: Float32, count: int, _: Any, status: Any) -> None:
        # On PortAudio's thread.
        self._power += 10.0 ** (level(frames) / 10.0) * count
        self._samples += count
        if self._samples >= self._wanted:
            self.enough.set()
