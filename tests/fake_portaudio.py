"""A sounddevice that the tests play: devices, streams, what is refused and what hangs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np


class PortAudioError(Exception):
    pass


class FakePortAudio:
    """Devices and streams; `refuse(channels, rate)` says what cannot be opened."""

    def __init__(self):
        self.devices = [
            self.device("HDA Intel: ALC (hw:0,0)", 2, 44_100),
            self.device("HDMI", 0, 48_000),
            self.device("USB Mic: Audio (hw:1,0)", 1, 48_000),
        ]
        self.streams = []
        self.restarts = 0
        self.refuse = lambda channels, rate: False
        self.PortAudioError = PortAudioError

    @staticmethod
    def device(name, channels, rate):
        return {"name": name, "max_input_channels": channels, "default_samplerate": rate, "hostapi": 0}

    def query_devices(self, kind=None):
        rows = [{**row, "index": index} for index, row in enumerate(self.devices)]
        if kind is None:
            return rows
        if not rows:
            raise PortAudioError("no device")
        return rows[0]

    def query_hostapis(self, index):
        return {"name": "ALSA"}

    def _terminate(self):
        assert all(not stream.active for stream in self.streams), "streams must be closed before"

    def _initialize(self):
        self.restarts += 1

    def InputStream(self, *, samplerate, device, channels, callback, **_):
        if self.refuse(channels, samplerate):
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")
        stream = FakeStream(samplerate, channels, device, callback)
        self.streams.append(stream)
        return stream


class FakeStream:
    def __init__(self, samplerate, channels, device, callback):
        self.samplerate, self.channels, self.device, self.callback = samplerate, channels, device, callback
        self.active = False

    def start(self):
        self.active = True
        self.deliver(np.zeros((1, self.channels), np.float32))

    def close(self):
        self.active = False

    def deliver(self, frames, overflow=False):
        self.callback(frames, len(frames), None, SimpleNamespace(input_overflow=overflow))
