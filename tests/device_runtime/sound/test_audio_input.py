"""Every kind of file that people have, and everything that is not audio."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from prunella.device_runtime.base.errors import AudioError, TooLongError
from prunella.device_runtime.sound.audio import (
    check_samples,
    is_silent,
    load_audio,
    open_audio,
    split_at_quiet_points,
)


def _sine(rate: int, seconds: float, channels: int) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


@pytest.mark.parametrize(
    ("kind", "subtype", "rate", "channels", "tolerance"),
    [
        ("WAV", "PCM_U8", 44_100, 2, 0.01),
        ("WAV", "PCM_16", 8_000, 1, 0.002),
        ("WAV", "PCM_24", 48_000, 6, 0.002),
        ("WAV", "FLOAT", 16_000, 1, 1e-6),
        ("WAV", "ULAW", 8_000, 1, 0.02),
        ("FLAC", "PCM_16", 22_050, 2, 0.002),
        ("OGG", "VORBIS", 44_100, 1, 0.05),
        ("OGG", "OPUS", 48_000, 2, 0.05),
        ("MP3", None, 44_100, 2, 0.02),
        ("MP3", None, 16_000, 1, 0.02),
    ],
)
def test_any_format_becomes_16_khz_mono(tmp_path, kind, subtype, rate, channels, tolerance):
    path = tmp_path / f"tone.{kind.lower()}"
    soundfile.write(path, _sine(rate, 1.5, channels), rate, format=kind, subtype=subtype)
    samples = load_audio(path)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 24_000) <= 0.1 * 16_000  # lossy codecs add or drop a frame
    expected = _sine(16_000, 1.5, 1)[:, 0]
    middle = samples[6_000:18_000]
    # Codecs may delay by a few samples: the same tone at the same level, whatever its phase.
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) == round(440 * len(middle) / 16_000)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(np.sqrt(np.mean(expected**2)), abs=tolerance)


def test_channels_are_averaged(tmp_path):
    left_right = np.stack([np.full(16_000, 0.5), np.full(16_000, -0.25)], axis=1)
    soundfile.write(tmp_path / "two.wav", left_right, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "two.wav"), 0.125, atol=1e-6)


def test_blocks_leave_no_seam(tmp_path):
    """A file longer than one block of the reader is resampled as if it were read at once."""
    noise = np.random.default_rng(0).normal(0, 0.1, 600_000).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", noise, 44_100, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "long.wav"), check_samples(noise, 44_100), atol=1e-5)


def test_a_pipe_is_read(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, _sine(16_000, 0.5, 1), 16_000, format="WAV")

    class Pipe:
        name = "<stdin>"

        def read(self) -> bytes:
            return buffer.getvalue()

    assert len(load_audio(Pipe())) == 8_000


def _write_float_wav(path, value):
    samples = np.zeros(16_000, np.float32)
    samples[5_000] = value
    soundfile.write(path, samples, 16_000, subtype="FLOAT")


def _cases(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("This is a letter, not a recording.\n" * 50)
    (tmp_path / "bytes.raw").write_bytes(b"\1\2" * 500)
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    _write_float_wav(tmp_path / "nan.wav", np.nan)
    _write_float_wav(tmp_path / "inf.wav", -np.inf)
    soundfile.write(tmp_path / "nan44.wav", np.full(44_100, np.nan, np.float32), 44_100, subtype="FLOAT")
    return {
        "empty.wav": "is empty",
        "text.wav": "not audio",
        "bytes.raw": "not audio",
        "folder.wav": "is a directory",
        "none.wav": "is empty",
        "nan.wav": "NaN or infinite",
        "inf.wav": "NaN or infinite",
        "nan44.wav": "NaN or infinite",
        "missing.wav": "does not exist",
    }


def test_what_is_not_usable_is_named_in_one_line(tmp_path):
    for name, reason in _cases(tmp_path).items():
        with pytest.raises(AudioError, match=reason) as caught:
            load_audio(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4_000))
def test_a_file_cut_short_anywhere_is_read_or_refused(cut):
    buffer = io.BytesIO()
    soundfile.write(buffer, _sine(16_000, 0.2, 1), 16_000, format="FLAC")
    try:
        samples = load_audio(io.BytesIO(buffer.getvalue()[:cut]))
    except AudioError:
        return
    assert np.isfinite(samples).all() and len(samples)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data):
    for start in (b"", b"RIFF", b"fLaC", b"OggS", b"ID3\x04", b"\xff\xfb"):
        try:
            load_audio(io.BytesIO(start + data))
        except AudioError as error:
            assert str(error)


def test_integers_are_scaled_by_their_range():
    for dtype in (np.int16, np.int32):
        half = np.full(100, np.iinfo(dtype).max // 2 + 1, dtype)
        np.testing.assert_allclose(check_samples(half, 16_000), 0.5)
    np.testing.assert_allclose(check_samples(np.full(9, 192, np.uint8), 16_000), 0.5)


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        (np.zeros(0), 16_000, "empty"),
        (np.array([0.0, np.nan]), 16_000, "NaN"),
        (np.array([np.inf, -np.inf]), 16_000, "NaN"),
        (np.zeros((2, 16_000)), 16_000, "shape"),
        (np.zeros((4, 2, 2)), 16_000, "shape"),
        (np.float32(1.0), 16_000, "shape"),
        (["a", "b"], 16_000, "type"),
        (np.zeros(9), 0, "rate"),
        (np.zeros(9), float("nan"), "rate"),
    ],
)
def test_bad_arrays_are_refused(samples, rate, reason):
    with pytest.raises(AudioError, match=reason):
        check_samples(samples, rate)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9_000), min_size=1, max_size=12),
    max_seconds=st.floats(1 / 16_000, 2.0),
    seed=st.integers(0, 1_000),
)
def test_every_sample_is_in_exactly_one_piece(lengths, max_seconds, seed):
    rng = np.random.default_rng(seed)
    samples = np.concatenate([rng.normal(0, rng.choice([0.0, 0.01, 0.3]), n) for n in lengths]).astype(
        np.float32
    )
    samples = samples[: int(max_seconds * 16_000) * 50]
    pieces = split_at_quiet_points(samples, max_seconds)
    assert [start for start, _ in pieces] == [0, *[stop for _, stop in pieces[:-1]]]
    assert pieces[-1][1] == len(samples)
    assert all(0 < stop - start <= max_seconds * 16_000 for start, stop in pieces)


def test_cuts_are_in_the_pauses():
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.1, 16_000 * 70).astype(np.float32)
    pauses = [(24, 25), (50, 51)]
    for start, stop in pauses:
        samples[start * 16_000 : stop * 16_000] *= 0.001
    cuts = [stop / 16_000 for _, stop in split_at_quiet_points(samples)[:-1]]
    assert len(cuts) == 2
    assert all(start < cut < stop for cut, (start, stop) in zip(cuts, pauses, strict=True))


def test_a_little_too_long_leaves_no_sliver():
    samples = np.random.default_rng(0).normal(0, 0.1, int(16_000 * 29.6)).astype(np.float32)
    pieces = split_at_quiet_points(samples)
    assert len(pieces) == 2
    assert min(stop - start for start, stop in pieces) >= 16_000


def test_no_samples_are_no_pieces():
    assert split_at_quiet_points(np.zeros(0, np.float32)) == []
    with pytest.raises(ValueError, match="max_seconds"):
        split_at_quiet_points(np.zeros(10, np.float32), 0.0)


def test_silence_is_judged_by_the_loudest_frame(tone):
    assert is_silent(np.zeros(0, np.float32), -60)
    assert is_silent(np.zeros(16_000, np.float32), -60)
    assert not is_silent(tone, -60)
    rms_dbfs = 20 * np.log10(0.3 / np.sqrt(2))
    assert not is_silent(tone, rms_dbfs - 0.5)
    assert is_silent(tone, rms_dbfs + 0.5)
    word_in_silence = np.zeros(160_000, np.float32)
    word_in_silence[80_000:84_000] = tone[:4_000]
    assert not is_silent(word_in_silence, -20)


def test_a_recording_that_is_too_long_is_refused_while_it_is_decoded(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(48_000 * 3, np.int16), 48_000)
    assert len(load_audio(path, max_seconds=3.0)) == 48_000
    with pytest.raises(TooLongError, match=r"longer than 2\.5 s"):
        load_audio(path, max_seconds=2.5)


def _wav(seconds=1.0, rate=16_000):
    buffer = io.BytesIO()
    soundfile.write(buffer, _sine(rate, seconds, 1), rate, format="WAV", subtype="PCM_16")
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize("promised", [0, 1, 2, 64])
def test_a_header_that_says_no_samples_is_not_believed_when_there_are_some(tmp_path, promised):
    whole = _wav()
    for riff_size in (0, 36):
        data = bytearray(whole)
        struct.pack_into("<I", data, 4, riff_size)
        struct.pack_into("<I", data, 40, promised)
        path = tmp_path / "killed.wav"
        path.write_bytes(data)
        np.testing.assert_array_equal(load_audio(path), load_audio(io.BytesIO(whole)))
        assert path.read_bytes() == data


def test_a_recording_of_a_few_samples_with_a_title_has_no_more():
    data = _wav()[:44] + bytes(range(8))
    struct.pack_into("<I", data, 40, 8)
    data += b"LIST" + struct.pack("<I", 12) + b"INFOIART\0\0\0\0"
    assert len(load_audio(io.BytesIO(data))) == 4


def test_an_empty_recording_with_a_title_stays_empty():
    data = _wav()[:44]
    struct.pack_into("<I", data, 40, 0)
    data += b"LIST" + struct.pack("<I", 12) + b"INFOIART\0\0\0\0"
    with pytest.raises(AudioError, match="is empty"):
        load_audio(io.BytesIO(data))


def test_a_path_that_cannot_seek_is_read(tmp_path):
    fifo = tmp_path / "fifo.wav"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(_wav()), daemon=True)
    writer.start()
    assert len(load_audio(fifo)) == 16_000
    writer.join()


def test_errors_name_what_was_sent():
    with pytest.raises(AudioError, match=r"^letter\.webm is not audio"):
        load_audio(io.BytesIO(b"dear sir"), name="letter.webm")
    file = io.BytesIO(b"dear sir")
    file.name = 13  # as a temporary file has
    with pytest.raises(AudioError, match=r"^the recording is not audio"):
        load_audio(file)


def test_channels_that_cancel_each_other_are_not_lost(tmp_path):
    wave = _sine(44_100, 1.0, 1)[:, 0]
    path = tmp_path / "antiphase.wav"
    soundfile.write(path, np.stack([wave, -wave], axis=1), 44_100, subtype="FLOAT")
    assert np.sqrt(np.mean(load_audio(path) ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)
    assert np.abs(check_samples(np.stack([wave, -wave], axis=1), 44_100)).max() > 0.4


def test_integers_that_were_written_as_floats_are_scaled(tmp_path):
    wave = _sine(16_000, 1.0, 1)[:, 0].astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", wave * 32_768, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "loud.wav"), wave / wave.max(), atol=1e-6)
    soundfile.write(tmp_path / "over.wav", wave * 4, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "over.wav"), wave * 4, atol=1e-6)


@pytest.mark.parametrize("rate", [1, 500, 2_000_000])
def test_a_rate_that_no_recorder_has_is_refused(rate):
    data = _wav()
    struct.pack_into("<I", data, 24, rate)
    with pytest.raises(AudioError, match="sampling rate"):
        load_audio(io.BytesIO(data))


def test_decoding_takes_little_more_than_its_result(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(8_000 * 600, np.int16), 8_000)
    tracemalloc.start()
    try:
        samples = load_audio(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * samples.nbytes


@pytest.mark.native
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on this machine")
@pytest.mark.parametrize(
    ("name", "codec"), [("a.webm", "libopus"), ("a.m4a", "aac"), ("a.aac", "aac"), ("a.wma", "wmav2")]
)
def test_what_browsers_and_phones_record_is_decoded_by_ffmpeg(tmp_path, name, codec):
    (tmp_path / "a.wav").write_bytes(_wav(2.0))
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", "-c:a", codec, tmp_path / name]
    if subprocess.run(command, check=False).returncode:
        pytest.skip(f"this ffmpeg has no {codec}")
    samples = load_audio(tmp_path / name)
    assert abs(len(samples) - 32_000) < 3_000
    assert np.argmax(np.abs(np.fft.rfft(samples[8_000:24_000]))) == 440
    np.testing.assert_array_equal(load_audio(io.BytesIO((tmp_path / name).read_bytes())), samples)
    with pytest.raises(TooLongError):
        load_audio(tmp_path / name, max_seconds=1.0)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on this machine")
@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd here")
@pytest.mark.parametrize("still_there", [True, False])
def test_an_open_file_is_found_by_ffmpeg(tmp_path, still_there):
    """`transcribe BUNDLE /dev/stdin < FILE`: another program has another standard input."""
    path = tmp_path / "a.mka"
    (tmp_path / "a.wav").write_bytes(_wav(2.0))
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", "-c:a", "flac", path], check=True)
    samples = load_audio(path)
    with path.open("rb") as opened:
        if not still_there:
            path.unlink()
        np.testing.assert_array_equal(load_audio(f"/dev/fd/{opened.fileno()}"), samples)


def test_without_ffmpeg_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match=r"webm.*where ffmpeg is installed"):
        load_audio(io.BytesIO(b"\x1aE\xdf\xa3" + bytes(4_000)))


@pytest.mark.native
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on this machine")
def test_a_playlist_opens_no_other_file(tmp_path):
    (tmp_path / "secret.wav").write_bytes(_wav())
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n"
        + "\n" * 600,
        "a.ffconcat": "ffconcat version 1.0\nfile secret.wav\n" + "#\n" * 600,
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match="not audio"):
            load_audio(tmp_path / name)


def test_a_channel_of_bass_does_not_take_the_place_of_the_speech():
    """The mean of six channels of which one is loud is no cancellation."""
    bass = 0.9 * np.sin(2 * np.pi * 40 * np.arange(16_000) / 16_000)
    channels = np.zeros((16_000, 6))
    channels[:, 2], channels[:, 3] = _sine(16_000, 1.0, 1)[:, 0], bass
    np.testing.assert_allclose(check_samples(channels, 16_000), channels.mean(axis=1), atol=1e-6)


def test_a_codec_that_cannot_seek_is_read(tmp_path):
    soundfile.write(tmp_path / "phone.wav", _sine(8_000, 1.0, 1), 8_000, subtype="GSM610")
    assert abs(len(load_audio(tmp_path / "phone.wav")) - 16_000) < 1_000


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_long_recording_is_read_again_and_not_held(tmp_path, kind):
    path = tmp_path / f"long.{kind.lower()}"
    noise = np.random.default_rng(0).normal(0, 0.1, (44_100 * 12, 2)).astype(np.float32)
    soundfile.write(path, noise, 44_100, format=kind, subtype="PCM_16")
    with open_audio(path, held_seconds=2.0) as audio:
        assert audio.held is None
        for _ in range(2):
            blocks = list(audio.blocks())
            np.testing.assert_array_equal(np.concatenate(blocks), load_audio(path))
        assert sum(map(len, blocks)) == audio.count and max(map(len, blocks)) < audio.count // 2


def test_what_of_a_wav_is_not_read_is_said():
    whole, cut = bytes(_wav()), bytes(_wav())[:-16_000]
    long_tail = whole + bytes(range(256)) * 40
    for data, words in (
        (whole, ""),
        (whole + whole, "another recording"),
        (cut, "breaks off"),
        (long_tail, "10240 b"),
    ):
        with open_audio(io.BytesIO(data)) as audio:
            assert words in " ".join(audio.notes) and bool(audio.notes) == bool(words)


def test_a_pipe_that_nobody_writes_to_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("prunella.device_runtime.sound.recording.FIFO_SECONDS", 0.2)
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="nothing was written"):
        load_audio(tmp_path / "a.wav")
