"""The microphones of this machine, with how loud each is right now.

stdout has one line per device, `*` before the default; --json makes them JSON lines. The level is that of half a second
(dBFS: 0 is full scale, speech is around -30, a muted device far below -60). --meter shows one device's level live.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict

from prunella.device_runtime.errors import AudioError
from prunella.device_runtime.log_mel import SAMPLE_RATE
from prunella.device_runtime.microphone import Microphone, level
from prunella.device_runtime.portaudio import input_devices

_METER_FLOOR = -70.0  # dBFS
_METER_WIDTH = 40


def levels(device: str | int | None = None, every: float = 0.1) -> Iterator[float]:
    """Levels of a microphone in dBFS, one every `every` seconds, until the iterator is closed.

    Raises:
        AudioError: as `Microphone`.
    """
    microphone = Microphone(device, queue_seconds=2.0)
    power = samples = 0.0
    for block in microphone:
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
        help="show the level of this device (or the default) live",
    )


def run(args: argparse.Namespace) -> int:
    if args.meter is not None:
        return _meter(args.meter or None)
    found = input_devices()
    if not found:
        raise AudioError("no microphone is there: plug one in, or check the sound server (pactl info)")
    for device in found:
        loudness: float | str | None = None
        if not args.no_level:
            try:
                loudness = round(next(levels(device.index, every=0.5)), 1)
            except (AudioError, StopIteration):
                loudness = "cannot be opened"
        if args.json:
            sys.stdout.write(json.dumps({**asdict(device), "dbfs": loudness}, ensure_ascii=False) + "\n")
            continue
        mark = "*" if device.default else " "
        text = f"{loudness} dBFS" if isinstance(loudness, float) else loudness or ""
        about = f"{device.host}, {device.rate} Hz, {device.channels} ch"
        sys.stdout.write(f"{mark} {device.index:>2}  {device.name}  ({about})  {text}".rstrip() + "\n")
    return 0


def _meter(device: str | None) -> int:
    try:
        for loudness in levels(device):
            share = (max(_METER_FLOOR, loudness) - _METER_FLOOR) / -_METER_FLOOR
            bar = "#" * round(_METER_WIDTH * min(1.0, share))
            sys.stderr.write(f"\r{loudness:6.1f} dBFS |{bar:<{_METER_WIDTH}}|")
            sys.stderr.flush()
    except KeyboardInterrupt:
        sys.stderr.write("\n")
    return 0
