"""The verb `devices`: what it lists, and that it ends and lets the microphones go whatever a driver does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_portaudio import FakePortAudio, FakeStream, PortAudioError

from prunella.cli import main
from prunella.device_runtime import devices as verb
from prunella.device_runtime.base.errors import AudioError
from prunella.device_runtime.devices import levels, survey
from prunella.device_runtime.live.microphone import Microphone


@pytest.fixture
def portaudio(monkeypatch):
    fake = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


@pytest.fixture
def humming(portaudio, monkeypatch):
    """Devices that deliver a second of a loud hum when they are started; the USB one cannot be opened."""

    def start(stream):
        stream.active = True
        for _ in range(10):
            stream.deliver(np.full((stream.samplerate // 10, stream.channels), 0.1, np.float32))

    monkeypatch.setattr(FakeStream, "start", start)
    monkeypatch.setattr(
        portaudio, "InputStream", lambda **kw: refuse_usb(FakePortAudio.InputStream, portaudio, **kw)
    )
    return portaudio


def refuse_usb(opener, portaudio, **options):
    if options["device"] == 2:
        raise PortAudioError("busy")
    return opener(portaudio, **options)


def test_devices_are_listed_with_their_level(humming, capsys):
    assert main(["devices"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("*  0  HDA Intel")
    assert "44100 Hz, 2 ch" in first
    assert first.endswith("-20.0 dBFS")
    assert second.startswith("   2  USB Mic")
    assert "cannot be opened" in second
    assert not any(stream.active for stream in humming.streams)
    assert main(["devices", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["dbfs"] == -20.0
    humming.devices = []
    assert main(["devices"]) == 1
    assert "no microphone" in capsys.readouterr().err


def test_the_meter_shows_a_level_until_ctrl_c(humming, monkeypatch, capsys):
    shown = []

    def interrupted(device):
        for loudness in levels(device):
            shown.append(loudness)
            yield loudness
            if len(shown) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr("prunella.device_runtime.devices.levels", interrupted)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert main(["devices", "--meter", "0"]) == 0
    assert shown == pytest.approx([-20] * 3, abs=0.5)
    assert "-20.0 dBFS |####" in capsys.readouterr().err


def test_a_mixer_that_offers_any_number_of_channels_says_how_many_are_recorded(humming, capsys):
    humming.devices.append(humming.device("pulse", 32, 44_100))
    assert main(["devices"]) == 0
    assert "1 of 32 ch" in capsys.readouterr().out.splitlines()[-1]


def test_the_meter_in_a_pipe_is_one_line(humming, capsys):
    assert main(["devices", "--meter"]) == 0
    assert capsys.readouterr().out == "-20.0 dBFS  HDA Intel: ALC (hw:0,0)\n"
    assert main(["devices", "--meter", "usb"]) == 1
    assert "cannot be opened" in capsys.readouterr().err
    assert not any(stream.active for stream in humming.streams)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(verb, "SECONDS", 0.6)
    monkeypatch.setattr(verb, "SPARE_SECONDS", 0.2)


@pytest.fixture
def never():
    """A driver's call that does not return while the test runs; whoever waited in it is gone before the next test."""
    over = threading.Event()
    before = set(threading.enumerate())
    yield lambda *_, **__: over.wait(60)
    over.set()
    for waited in set(threading.enumerate()) - before:
        waited.join(10)


def _pulse(fake):
    fake.devices.append(fake.device("pulse", 32, 44_100))


def test_a_driver_that_never_lists_is_said(portaudio, impatient, never, monkeypatch, capsys):
    monkeypatch.setattr(portaudio, "query_devices", never)
    for arguments in (["devices"], ["devices", "--no-level"], ["devices", "--json"], ["devices", "--meter"]):
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and "does not answer" in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("call", ["open", "start", "close"])
def test_one_device_that_hangs_hides_no_other(call, humming, impatient, never, monkeypatch, capsys):
    opener = humming.InputStream

    def hangs(device):
        return device == 3

    def opened(**options):
        if call == "open" and hangs(options["device"]):
            never()
        stream = opener(**options)
        if call != "open" and hangs(options["device"]):
            monkeypatch.setattr(stream, call, never, raising=False)
        return stream

    monkeypatch.setattr(humming, "InputStream", opened)
    _pulse(humming)
    assert main(["devices", "--json"]) == 0
    rows = {row["index"]: row["dbfs"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows == {
        0: -20.0,
        2: "cannot be opened",
        3: -20.0 if call == "close" else "does not answer",
    }


def test_a_device_that_never_calls_back_is_said(humming, impatient, monkeypatch, capsys):
    monkeypatch.setattr(FakeStream, "start", lambda stream: setattr(stream, "active", True))
    assert main(["devices"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("delivers nothing")
    assert not any(stream.active for stream in humming.streams)
    assert main(["devices", "--meter"]) == 1
    assert "delivers nothing" in capsys.readouterr().err


def test_devices_that_share_one_card_are_measured_in_turn(humming, impatient, capsys):
    _pulse(humming)
    opener = humming.InputStream

    def exclusive(**options):
        if any(stream.active for stream in humming.streams):
            raise PortAudioError("Device unavailable")
        return opener(**options)

    humming.InputStream = exclusive
    assert survey().levels == {0: -20.0, 2: "cannot be opened", 3: -20.0}
    assert not any(stream.active for stream in humming.streams)


HANGS = """
import os, sys, time
sys.path.insert(0, {tests!r})
import fake_portaudio
fake = fake_portaudio.FakePortAudio()
import atexit
fake._exit_handler = lambda: time.sleep(600)  # Pa_Terminate waits for the driver too
atexit.register(fake._exit_handler)
def query(kind=None):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as sounddevice does while PortAudio starts
    time.sleep(600)
fake.query_devices = query
sys.modules["sounddevice"] = fake
from prunella.device_runtime import devices
devices.SECONDS, devices.SPARE_SECONDS = 0.3, 0.1
from prunella.cli import main
sys.exit(main(["devices"]))
"""


def test_the_process_ends_and_says_why(tmp_path):
    code = HANGS.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "the sound system does not answer" in done.stderr


@pytest.mark.parametrize("where", ["left alone", "in the block", "in the loop", "before the loop's end"])
def test_a_microphone_closes_on_every_path(portaudio, where):
    with pytest.raises(ZeroDivisionError), Microphone() as microphone:
        (stream,) = portaudio.streams
        assert stream.active
        if where == "in the block":
            raise ZeroDivisionError
        if where in ("in the loop", "before the loop's end"):
            stream.deliver(np.zeros((9_600, 2), np.float32))
            for _ in microphone:
                if where == "in the loop":
                    raise ZeroDivisionError
                break
        raise ZeroDivisionError
    assert not stream.active
    microphone.close()  # again


def test_a_microphone_that_does_not_come_to_be_closes_too(portaudio, tmp_path, monkeypatch):
    with pytest.raises(AudioError, match=r"tap .* cannot be written"):
        Microphone(tap=tmp_path / "no folder" / "tap.wav")

    def interrupted(stream):
        stream.active = True
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeStream, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Microphone(tap=tmp_path / "tap.wav")
    assert len(portaudio.streams) == 2 and not any(stream.active for stream in portaudio.streams)


def test_levels_that_nobody_reads_to_the_end_close(humming):
    iterator = levels(every=0.1)
    assert next(iterator) == pytest.approx(-20, abs=0.5)
    assert humming.streams[-1].active
    iterator.close()
    assert not any(stream.active for stream in humming.streams)
