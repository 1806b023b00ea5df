"""PortAudio's input devices, through sounddevice, which is only imported here and only when asked for."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from prunella.device_runtime.base.errors import AudioError, UsageError

_MANY_CHANNELS = 8  # a "device" with more is a mixer that offers any number: one channel will do
_USUAL_RATES = (48_000, 44_100, 16_000)


@dataclass(frozen=True)
class InputDevice:
    """A microphone as PortAudio sees it."""

    index: int
    name: str
    host: str  # "ALSA", "Core Audio", ...
    channels: int
    rate: int  # Hz; the device's own
    default: bool

    @property
    def recorded(self) -> int:
        """Channels that are recorded: all, or one of a mixer that offers any number."""
        return self.channels if self.channels <= _MANY_CHANNELS else 1


def sounddevice() -> ModuleType:
    """The sounddevice module.

    Raises:
        AudioError: PortAudio or sounddevice is missing.
    """
    try:
        return importlib.import_module("sounddevice")
    except OSError as error:  # the wheels for macOS and Windows carry PortAudio, on Linux the system has it
        raise AudioError(
            "the microphone needs the PortAudio library: sudo apt install libportaudio2 (Fedora: dnf install portaudio, "
            "Arch: pacman -S portaudio), or pipe audio in: arecord -f S16_LE -r 16000 | prunella listen BUNDLE -"
        ) from error
    except ModuleNotFoundError as error:
        raise AudioError("the microphone needs sounddevice: pip install sounddevice") from error


def input_devices() -> list[InputDevice]:
    """All devices that can record, in PortAudio's order."""
    sd = sounddevice()
    default = _default_index(sd)
    return [_device(sd, info, default) for info in sd.query_devices() if info["max_input_channels"] > 0]


def find_device(wanted: str | int | None = None) -> InputDevice:
    """One device: by number, by name or part of a name (case does not matter), or the system's default.

    Raises:
        AudioError: there is no microphone, or no such one; the message lists those that there are.
        UsageError: the name fits several.
    """
    devices = input_devices()
    if not devices:
        raise AudioError(
            "no microphone is there: plug one in, or check the sound server (`prunella devices`)"
        )
    names = ", ".join(f"{device.index}: {device.name}" for device in devices)
    if wanted is None:
        return next((device for device in devices if device.default), devices[0])
    if isinstance(wanted, int) or wanted.isdecimal():
        for device in devices:
            if device.index == int(wanted):
                return device
        raise AudioError(f"no microphone has the number {wanted}: choose from {names}")
    low = wanted.casefold()
    exact = [device for device in devices if device.name.casefold() == low]
    found = exact or [device for device in devices if low in device.name.casefold()]
    if not found:
        raise AudioError(f"no microphone is called '{wanted}': choose from {names}")
    if len(found) > 1 and not exact:
        fits = ", ".join(f"{device.index}: {device.name}" for device in found)
        raise UsageError(f"'{wanted}' fits several microphones: choose one of {fits}")
    return found[0]


def stable_name(device: InputDevice) -> str:
    """The device's name without the ALSA address, which changes when it is plugged in again."""
    return re.sub(r" \(hw:\d+,\d+\)$", "", device.name)


def restart() -> None:
    """Make PortAudio look at the machine anew. It lists devices once, when it starts; no stream may be open."""
    sd = sounddevice()
    sd._terminate()  # sounddevice has no public name for it  # noqa: SLF001
    sd._initialize()  # noqa: SLF001


def open_input(device: InputDevice, callback: Any) -> Any:
    """Open a device at its own rate and channel count, or at the nearest usual ones that it takes → `InputStream`.

    The stream is not started; `callback` is sounddevice's.

    Raises:
        AudioError: it cannot be opened at all, for example because another program holds it.
    """
    sd = sounddevice()
    reason: Exception | None = None
    for count in dict.fromkeys([device.recorded, 2, 1]):
        for rate in dict.fromkeys([device.rate, *_USUAL_RATES]):
            try:
                return sd.InputStream(
                    samplerate=rate,
                    device=device.index,
                    channels=count,
                    dtype="float32",
                    latency="high",  # larger buffers; the wait for the end of speech dwarfs them
                    callback=callback,
                )
            except (sd.PortAudioError, ValueError) as error:
                reason = reason or error
    raise AudioError(
        f"microphone {device.index}: {device.name} cannot be opened ({reason}): close what uses it, or choose another "
        "(`prunella devices`)"
    )


def start_stream(stream: Any, device: InputDevice) -> None:
    """Let an opened stream record.

    Raises:
        AudioError: the device does not deliver; the stream is closed.
    """
    try:
        stream.start()
    except sounddevice().PortAudioError as error:
        close_stream(stream)
        raise AudioError(
            f"microphone {device.index}: {device.name} does not start ({error}): choose another (`prunella devices`)"
        ) from error


def is_active(stream: Any) -> bool:
    """Whether a stream still records; a device that was unplugged does not."""
    try:
        return bool(stream.active)
    except sounddevice().PortAudioError:
        return False


def close_stream(stream: Any) -> None:
    """Close a stream, which may have been closed before, or whose device may be gone: then there is nothing to lose."""
    with contextlib.suppress(sounddevice().PortAudioError):
        stream.close()


def ends_in_time(work: Callable[[], None], seconds: float) -> bool:
    """Run what calls drivers on a thread of its own → whether it ended within `seconds`.

    A driver may never return from a call. Then its thread is left behind, PortAudio must not be used any more in this
    process, and the end of the process does not wait for it. What `work` raises is raised here.
    """
    failures: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
        ended.set()

    with _stderr_kept():
        try:
            threading.Thread(target=run, name="prunella-drivers", daemon=True).start()
            ended.wait(seconds)
        finally:
            module = sys.modules.get("sounddevice")
            if not ended.is_set() and (at_exit := getattr(module, "_exit_handler", None)) is not None:
                atexit.unregister(at_exit)  # it would call the driver again
    if failures:
        raise failures[0]
    return ended.is_set()


@contextlib.contextmanager
def _stderr_kept() -> Iterator[None]:
    # sounddevice sends stderr to nowhere while PortAudio starts; if that never ends, our message would go there too.
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _default_index(sd: ModuleType) -> int:
    try:
        return int(sd.query_devices(kind="input")["index"])
    except (sd.PortAudioError, ValueError):
        return -1


def _device(sd: ModuleType, info: dict[str, Any], default: int) -> InputDevice:
    return InputDevice(
        index=info["index"],
        name=info["name"],
        host=sd.query_hostapis(info["hostapi"])["name"],
        channels=info["max_input_channels"],
        rate=int(info["default_samplerate"]),
        default=info["index"] == default,
    )
