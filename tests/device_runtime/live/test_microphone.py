"""The microphone over a PortAudio that the test plays: what is dropped, lost, resampled, reopened."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest
import soundfile
from fake_portaudio import FakePortAudio

from prunella.device_runtime.base.errors import AudioError, UsageError
from prunella.device_runtime.live import microphone as microphone_module
from prunella.device_runtime.live.microphone import Microphone, level
from prunella.device_runtime.live.portaudio import find_device, input_devices
from prunella.device_runtime.sound.audio import load_audio


@pytest.fixture
def portaudio(monkeypatch):
    fake = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(microphone_module, "RETRY_SECONDS", 0.02)
    return fake


def collect(microphone):
    blocks = []
    thread = threading.Thread(target=lambda: blocks.extend(microphone))
    thread.start()
    return blocks, thread


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_devices_are_found_by_number_name_and_default(portaudio):
    assert [device.index for device in input_devices()] == [0, 2]
    assert find_device().index == 0
    assert find_device("2").rate == 48_000
    assert find_device("usb").index == 2
    with pytest.raises(AudioError, match="choose from 0: HDA"):
        find_device("bluetooth")
    with pytest.raises(AudioError, match="number 1"):
        find_device(1)
    with pytest.raises(UsageError, match="several"):
        find_device("hw")
    portaudio.devices = []
    with pytest.raises(AudioError, match="plug one in"):
        find_device()


def test_what_was_recorded_before_stop_arrives_resampled_and_tapped(portaudio, tmp_path):
    tap = tmp_path / "tap.wav"
    Microphone(tap=tap).close()  # of an earlier run
    portaudio.streams.clear()
    microphone = Microphone(tap=tap)
    assert (microphone.rate, microphone.channels) == (44_100, 2)
    signal = 0.5 * np.random.default_rng(0).standard_normal((44_100, 2)).astype(np.float32)
    for begin in range(0, len(signal), 1_000):
        portaudio.streams[0].deliver(signal[begin : begin + 1_000])
    microphone.stop()
    blocks = list(microphone)
    assert not portaudio.streams[0].active
    assert sum(block.dropped for block in blocks) == 0
    tapped, rate = soundfile.read(tap, dtype="float32")
    assert rate == 44_100
    np.testing.assert_array_equal(tapped[1:], signal)
    np.testing.assert_allclose(np.concatenate([b.samples for b in blocks]), load_audio(tap), atol=1e-6)
    mine = tmp_path / "mine.wav"
    soundfile.write(mine, signal, 44_100)
    before = mine.read_bytes()
    with pytest.raises(UsageError, match="no tap that prunella wrote"):
        Microphone(tap=mine)
    assert mine.read_bytes() == before


def test_the_queue_is_bounded_and_what_does_not_fit_is_counted_in_its_place(portaudio):
    microphone = Microphone("usb", queue_seconds=1.0)
    (stream,) = portaudio.streams
    second = np.full((4_800, 1), 0.1, np.float32)
    for _ in range(30):  # 3 s into a queue of 1 s
        stream.deliver(second)
    assert microphone.dropped == 96_000 + 4_800
    blocks, thread = collect(microphone)
    wait_until(lambda: len(blocks) >= 10)
    stream.deliver(second)
    stream.deliver(second)
    microphone.stop()
    thread.join(10)
    told = [(index, block.dropped) for index, block in enumerate(blocks) if block.dropped]
    assert [dropped for _, dropped in told] == [round(100_800 / 3)]
    samples = sum(len(block.samples) for block in blocks)
    assert samples + told[0][1] == pytest.approx((30 + 2) * 1_600, abs=2)


def test_losses_at_the_very_end_are_counted(portaudio):
    microphone = Microphone("usb", queue_seconds=0.1)
    for _ in range(3):
        portaudio.streams[0].deliver(np.zeros((4_000, 1), np.float32))
    microphone.stop()
    assert sum(block.dropped for block in microphone) == round(8_000 / 3)


def test_the_nearest_usual_format_is_taken_when_the_own_one_is_refused(portaudio):
    portaudio.refuse = lambda channels, rate: rate != 48_000 or channels != 1
    microphone = Microphone(0)
    assert (microphone.rate, microphone.channels) == (48_000, 1)
    portaudio.refuse = lambda channels, rate: True
    with pytest.raises(AudioError, match=r"-9997.*close what uses it"):
        Microphone(0)


def test_an_unplugged_microphone_is_waited_for_and_the_gap_counts_as_dropped(portaudio):
    told = []
    microphone = Microphone("usb", tell=told.append)
    blocks, thread = collect(microphone)
    stream = portaudio.streams[0]
    stream.deliver(np.full((480, 1), 0.25, np.float32))
    wait_until(lambda: len(blocks) >= 2)
    usb = portaudio.devices.pop()
    stream.active = False
    wait_until(lambda: portaudio.restarts >= 3)
    assert len(portaudio.streams) == 1
    portaudio.devices.append({**usb, "name": "USB Mic: Audio (hw:3,0)"})
    wait_until(lambda: len(portaudio.streams) == 2)
    portaudio.streams[1].deliver(np.full((480, 1), 0.75, np.float32))
    wait_until(lambda: any(block.dropped for block in blocks))
    microphone.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert ["gone" in told[0], "back" in told[1]] == [True, True]
    (gap,) = (block.dropped for block in blocks if block.dropped)
    assert 0.02 * 16_000 < gap < 10 * 16_000


def test_stop_ends_the_wait_for_a_lost_microphone(portaudio):
    microphone = Microphone("usb")
    _, thread = collect(microphone)
    portaudio.devices.pop()
    portaudio.streams[0].active = False
    wait_until(lambda: portaudio.restarts >= 1)
    microphone.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_overruns_inside_portaudio_are_told(portaudio):
    told = []
    microphone = Microphone(tell=told.append)
    portaudio.streams[0].deliver(np.zeros((10, 2), np.float32), overflow=True)
    microphone.stop()
    list(microphone)
    assert microphone.overflows == 1
    assert "lost samples" in told[0]


def test_without_portaudio_one_line_names_the_package(monkeypatch):
    class Missing:
        def find_spec(self, name, *_):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(AudioError, match="libportaudio2"):
        Microphone()


def test_level_is_in_dbfs():
    assert level(np.ones((100, 2), np.float32)) == pytest.approx(0)
    assert level(np.full(100, 0.1, np.float32)) == pytest.approx(-20, abs=0.01)
    assert level(np.zeros(100, np.float32)) == -120
