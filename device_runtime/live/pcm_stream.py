"""Live audio from a pipe: raw 16-bit PCM, or WAV whose header says what it is (`arecord ... | prunella listen B -`)."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError
from prunella.device_runtime.live.audio_block import AudioBlock, LiveResampler
from prunella.device_runtime.sound.audio import FULL_SCALE, MAX_CHANNELS
from prunella.device_runtime.sound.recording import HIGHEST_RATE, LOWEST_RATE

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_CODED = {
    b"ID3": "an mp3 file",
    b"OggS": "an ogg or opus file",
    b"fLaC": "a flac file",
    b"\x1aE\xdf\xa3": "a webm or mkv file",
    b"\x30\x26\xb2\x75\x8e\x66": "a wma file",
    b"FORM": "an aiff file",
    b".snd": "an au file",
    b"caff": "a caf file",
    b"RF64": "an RF64 file",
    b"#!AMR": "an amr file",
    b"riff\x2e\x91\xcf\x11": "a w64 file",
    b"wvpk": "a WavPack file",
    b"NIST_1A": "a NIST file",
}
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide")
_MPEG_SECOND = (0xFA, 0xFB, 0xF2, 0xF3, 0xF4, 0xF5, 0xE2, 0xE3, 0xFC, 0xFD, 0xF0, 0xF1, 0xF8, 0xF9)
_LONGEST_CHUNK = 1 << 20  # bytes; of what a header may hold before its samples
_INTEGERS = tuple(
    2.0 ** (bits - 1) for bits in (16, 24, 32)
)  # full scales of samples that were written as floats
_BLOCK = 1 << 12  # bytes asked for at once: 128 ms at 16 kHz, less when the pipe has less


@dataclass(frozen=True)
class PcmFormat:
    """Little-endian samples, interleaved. `bits`: 16, 24 or 32 for integers, 32 for floats."""

    rate: int = 16_000
    channels: int = 1
    bits: int = 16
    floating: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8

    def decode(self, data: bytes) -> Float32:
        """Whole frames → (n, channels) float32 in [-1, 1]."""
        if self.floating:
            values = np.frombuffer(data, "<f4").astype(np.float32)
        elif self.bits == 24:
            padded = np.zeros((len(data) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            values = (padded.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
        else:
            values = (np.frombuffer(data, f"<i{self.bits // 8}") / 2.0 ** (self.bits - 1)).astype(np.float32)
        return values.reshape(-1, self.channels)


class PcmStream:
    """Blocks from a binary stream until its end; iterate once.

    Args:
        stream: open for reading, for example `sys.stdin.buffer`; need not be seekable.
        raw: the format, if no WAV header says another.

    Floats beyond full scale are integers that were written as floats, and are scaled.

    Attributes:
        format: of the samples.
        headed: whether a header said so; if not, it is only believed.
        frames: samples of every channel that came.
        stopped: whether `stop` was called.

    Raises:
        AudioError: a WAV that is not PCM or float, or a format out of range.
    """

    def __init__(self, stream: BinaryIO, raw: PcmFormat | None = None) -> None:
        self._read = getattr(
            stream, "read1", stream.read
        )  # read1: what there is, without waiting for all of it
        self._pending = _exactly(stream, 12)
        self.format = raw or PcmFormat()
        self.headed = self._pending[:4] == b"RIFF" and self._pending[8:] == b"WAVE"
        self.frames = 0
        if self.headed:
            self.format = _wav_format(stream)
            self._pending = b""
        elif coded := name_container(self._pending) or _name_mpeg(self._pending):
            raise AudioError(
                f"standard input is {coded}, not samples: pipe it through `ffmpeg -i - -f wav -`, "
                "or give the file to `prunella transcribe`"
            )
        _check(self.format)
        self._full_scale = 1.0
        self.stopped = False
        self._reading = False

    def stop(self) -> None:
        """End the iteration after what was read. Safe to call from a signal handler, which it leaves by an exception
        if the reader waits for input."""
        self.stopped = True
        if self._reading:
            raise _StopReading

    def __iter__(self) -> Iterator[AudioBlock]:
        resampler = LiveResampler(self.format.rate)
        size = self.format.frame_bytes
        data, self._pending = self._pending, b""
        while not self.stopped:
            whole = len(data) // size * size
            if whole:
                self.frames += whole // size
                samples = self._scaled(self.format.decode(data[:whole]))
                yield AudioBlock(resampler(samples), captured=time.perf_counter())
            more = self._more()
            if not more:
                break
            data = data[whole:] + more
        yield AudioBlock(resampler.finish(), captured=time.perf_counter())

    def _scaled(self, samples: Float32) -> Float32:
        """Of integers it shows with the first that is no digital silence; which ones, with the loudest so far."""
        if not self.format.floating:
            return samples
        peak = float(np.abs(samples).max())
        if FULL_SCALE * self._full_scale < peak < np.inf:
            self._full_scale = next((full for full in _INTEGERS if peak <= FULL_SCALE * full), peak)
        with np.errstate(invalid="ignore"):  # NaN and infinities are refused later, in words
            return samples / np.float32(self._full_scale)

    def _more(self) -> bytes:
        try:
            self._reading = True
            return b"" if self.stopped else self._read(max(_BLOCK, self.format.frame_bytes))
        except _StopReading:
            return b""
        finally:
            self._reading = False


class _StopReading(Exception):
    """Raised by a signal handler to get out of a read that would wait for ever."""


def name_container(start: bytes) -> str | None:
    """What a coded file is called, by its first 12 bytes; None: raw samples or WAV, as far as one can tell."""
    for magic, name in _CODED.items():
        if start.startswith(magic):
            return name
    if start[4:8] in _MP4_BOXES:
        return "an mp4 or m4a file"
    if start.startswith(b"RIFF") and start[8:12] != b"WAVE":
        return f"a RIFF file of kind {start[8:12].decode('ascii', 'replace').strip()!r}"
    return None


def _name_mpeg(start: bytes) -> str | None:
    """MPEG audio: the sync word, then no reserved version, layer, rate or sampling rate. Quiet PCM begins with FF too."""
    if len(start) >= 4 and start[0] == 0xFF and start[1] in _MPEG_SECOND and _mpeg_third(start[1], start[2]):
        return "an mp3 or aac file"
    return None


def _mpeg_third(second: int, third: int) -> bool:
    if second & 0x06 == 0:  # layer 0 is AAC in ADTS: its profile and its sampling rate
        return third >> 6 != 3 and (third >> 2) & 0x0F < 13
    return 0 < third >> 4 < 15 and (third >> 2) & 3 != 3


def _wav_format(stream: BinaryIO) -> PcmFormat:
    """Read up to the first sample. The sizes of RIFF and data mean nothing in a pipe: their writer did not know them."""
    found: PcmFormat | None = None
    while True:
        head = _exactly(stream, 8)
        if len(head) < 8:
            raise AudioError("the WAV on standard input has no samples: check the program that writes it")
        name, size = head[:4], struct.unpack("<I", head[4:])[0]
        if name == b"data":
            if found is None:
                raise AudioError("the WAV on standard input has no format before its samples: write it anew")
            return found
        if size > _LONGEST_CHUNK:
            raise AudioError("the WAV on standard input has a broken header: write it anew")
        body = _exactly(stream, size + size % 2)
        if name == b"fmt " and len(body) >= 16:
            kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
            if kind == _EXTENSIBLE and len(body) >= 26:
                kind = struct.unpack("<H", body[24:26])[0]
            if kind not in (_PCM, _FLOAT):
                raise AudioError(
                    f"the WAV on standard input is compressed (format {kind}): pipe it through `ffmpeg -i - -f wav -`"
                )
            found = PcmFormat(rate, channels, bits, kind == _FLOAT)


def _check(form: PcmFormat) -> None:
    allowed = (32,) if form.floating else (16, 24, 32)
    if form.bits not in allowed:
        raise AudioError(
            f"{form.bits}-bit samples cannot be read from a pipe: send 16-bit PCM (`arecord -f S16_LE`)"
        )
    if not 1 <= form.channels <= MAX_CHANNELS:
        raise AudioError(f"{form.channels} channels are not possible: give 1 to {MAX_CHANNELS}")
    if not LOWEST_RATE <= form.rate <= HIGHEST_RATE:
        raise AudioError(
            f"a sampling rate of {form.rate} Hz is not possible: give the rate it is recorded at"
        )


def _exactly(stream: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end of the stream."""
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
