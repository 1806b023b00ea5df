"""Audio from pipes: raw and WAV of every format, cut anywhere, ended by a signal."""

from __future__ import annotations

import io
import os
import signal
import struct
import threading

import numpy as np
import pytest
import soundfile

from prunella.device_runtime.base.errors import AudioError
from prunella.device_runtime.live.pcm_stream import PcmFormat, PcmStream
from prunella.device_runtime.sound.audio import load_audio


class Pipe(io.RawIOBase):
    """Gives at most `step` bytes at once, and cannot seek."""

    def __init__(self, data, step):
        self.rest, self.step = data, step

    def readable(self):
        return True

    def readinto(self, buffer):
        part = self.rest[: min(len(buffer), self.step)]
        self.rest = self.rest[len(part) :]
        buffer[: len(part)] = part
        return len(part)


def read(data, step=10_000, **raw):
    stream = PcmStream(io.BufferedReader(Pipe(data, step)), PcmFormat(**raw))
    return np.concatenate([block.samples for block in stream])


def noise(count, channels):
    return np.random.default_rng(0).uniform(-0.9, 0.9, (count, channels)).astype(np.float32)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
def test_a_piped_wav_equals_the_file(tmp_path, subtype, rate, channels, container):
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(rate // 2, channels), rate, subtype=subtype, format=container)
    for step in (7, 4_096):
        np.testing.assert_allclose(read(path.read_bytes(), step), load_audio(path), atol=1e-6)


def test_the_sizes_in_a_streamed_header_are_not_believed(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(8_000, 1), 16_000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    for size in (0, 0x7FFFFFFF, 0xFFFFFFFF):
        data[4:8] = data[40:44] = struct.pack("<I", size)
        assert len(read(bytes(data))) == 8_000


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_integers_written_as_floats_are_scaled(bits):
    wave = noise(16_000, 1)[:, 0]
    wave[:4_000] *= 1e-3
    buffer = io.BytesIO()
    soundfile.write(buffer, wave * 2.0 ** (bits - 1), 16_000, format="WAV", subtype="FLOAT")
    samples = read(buffer.getvalue())
    np.testing.assert_allclose(samples[6_000:], wave[6_000:], atol=1e-4)
    assert np.abs(samples).max() < 1.5, "nor was the beginning beyond full scale"


def test_raw_samples_are_taken_at_the_rate_that_was_given():
    values = (noise(6_000, 2) * 32_767).astype("<i2")
    np.testing.assert_allclose(
        read(values.tobytes(), 13, channels=2), values.mean(axis=1, dtype=np.float32) / 32_768, atol=1e-6
    )
    assert len(read(values.tobytes(), rate=8_000, channels=2)) == pytest.approx(12_000, abs=2)
    assert len(read(b"\0" * 5)) == 2
    assert len(read(b"")) == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"RIFF\0\0\0\0WAVE", "no samples"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "no format"),
        (b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff", "broken"),
        (
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0"
            + struct.pack("<HHIIHH", 6, 1, 8000, 8000, 1, 8)
            + b"data\0\0\0\0",
            "compressed",
        ),
        (
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0"
            + struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)
            + b"data\0\0\0\0",
            "8-bit",
        ),
        (
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0"
            + struct.pack("<HHIIHH", 1, 0, 8000, 0, 0, 16)
            + b"data\0\0\0\0",
            "channels",
        ),
        (
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 1, 1, 0, 0, 2, 16) + b"data\0\0\0\0",
            "rate of 0",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(data, words):
    with pytest.raises(AudioError, match=words) as error:
        read(data)
    assert "\n" not in str(error.value)


def test_a_signal_ends_the_wait_for_input_that_never_comes():
    reader, writer = os.pipe()
    os.write(writer, b"\1\0" * 4_000)
    with os.fdopen(reader, "rb") as pipe:
        stream = PcmStream(pipe)
        previous = signal.signal(signal.SIGUSR1, lambda *_: stream.stop())
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            samples = np.concatenate([block.samples for block in stream])
        finally:
            timer.cancel()
            signal.signal(signal.SIGUSR1, previous)
            os.close(writer)
    assert len(samples) == 4_000


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None)])
def test_a_coded_file_is_not_taken_for_samples(kind, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(16_000, 1), 16_000, format=kind, subtype=subtype)
    with pytest.raises(AudioError, match=r"not samples.*ffmpeg"):
        PcmStream(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypM4A ", "m4a"),
        (b"\0\0\0\x08wide\0\0\0\0", "m4a"),
        (b"RIFF\0\0\0\0AVI LIST", "'AVI'"),
        (b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb", "w64"),
        (b"wvpk\0\0\0\0\0\0\0\0", "WavPack"),
        (b"NIST_1A\n   1024\n", "NIST"),
        (b"\xff\xf5\x84\xc4" + bytes(8), "mp3"),
    ],
)
def test_containers_are_named(start, name):
    with pytest.raises(AudioError, match=f"{name}.*not samples"):
        read(start + bytes(1_000))


@pytest.mark.parametrize(
    "start", [b"\xff\xff\xfe\xff", b"\xff\xff\x00\x00", b"\xfe\xff\xff\xff", b"\x00" * 4]
)
def test_quiet_samples_are_not_taken_for_a_coded_file(start):
    assert len(read(start + bytes(3_196))) == 1_600


def test_channels_that_cancel_each_other_are_not_lost_in_a_pipe():
    wave = noise(16_000, 1)[:, 0]
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([wave, -wave], axis=1), 16_000, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(read(buffer.getvalue()), wave, atol=1e-6)
