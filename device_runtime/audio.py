"""Audio in: any file that libsndfile reads becomes 16 kHz mono float32, checked and cut into decodable pieces."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
import soxr

from prunella.device_runtime.errors import AudioError, TooLongError
from prunella.device_runtime.log_mel import SAMPLE_RATE

if TYPE_CHECKING:
    import soundfile

Float32 = npt.NDArray[np.float32]

MAX_CHANNELS = 32
_CONVERT = f"convert it with `ffmpeg -i FILE -ac 1 -ar {SAMPLE_RATE} OUT.wav`"
_READ_FRAMES = 1 << 18
_GATE_FRAME = SAMPLE_RATE * 30 // 1000
_QUIET_WINDOW = SAMPLE_RATE // 4
_QUIET_HOP = SAMPLE_RATE // 100


def load_audio(source: str | Path | BinaryIO, *, max_seconds: float | None = None) -> Float32:
    """Decode a wav, flac, ogg, opus or mp3 at any rate, channel count and bit depth.

    The file is decoded, downmixed and resampled in blocks: memory is that of the result (230 MB for an hour).

    Args:
        source: a path, or a binary file object (need not be seekable).
        max_seconds: longest recording to take; a longer one is refused as soon as so much of it is decoded.

    Returns:
        (n,) float32 at 16 kHz, n > 0; channels are averaged.

    Raises:
        AudioError: missing, a directory, unreadable, not audio, empty, too long, or with NaN or infinite samples.
    """
    import soundfile  # here, because it loads a C library that other users of this module do not need

    if isinstance(source, (str, Path)):
        path = Path(source)
        name = str(source)
        if path.is_dir():
            raise AudioError(f"{name} is a directory: name the audio files in it")
        if not path.exists():
            raise AudioError(f"{name} does not exist: check the path")
        try:
            file: BinaryIO = path.open("rb")
        except OSError as error:
            raise AudioError(f"{name} cannot be read ({error.strerror}): check its permissions") from error
    else:
        name = str(getattr(source, "name", "the audio stream"))
        file = io.BytesIO(source.read())  # a pipe cannot seek, which the decoders need
    with file:
        if not file.read(1):
            raise AudioError(f"{name} is empty: record or copy it again")
        file.seek(0)
        try:
            with soundfile.SoundFile(file) as decoder:
                samples = _decode(decoder, name, max_seconds)
        except (soundfile.SoundFileError, TypeError) as error:
            # TypeError: a name that ends in .raw, whose format nobody can know.
            reason = str(getattr(error, "error_string", error)).rstrip(".")
            raise AudioError(
                f"{name} is not audio that can be read here ({reason}; wav, flac, ogg, opus and mp3 can): {_CONVERT}"
            ) from error
    return check_samples(samples, SAMPLE_RATE, name=name)


def check_samples(samples: npt.ArrayLike, rate: int | float, *, name: str = "the audio") -> Float32:
    """Check samples that are already in memory and bring them to 16 kHz mono.

    Args:
        samples: (n,) or (n, channels); floats in [-1, 1], or integers, which are scaled by their type's range.
        rate: their sampling rate in Hz.
        name: what errors call them.

    Returns:
        (m,) float32 at 16 kHz, m > 0.

    Raises:
        AudioError: not numbers, another shape, a rate that is not positive, empty, or NaN or infinite samples.
    """
    array = np.asarray(samples)
    if array.dtype.kind in "iu":
        array = _scale_integers(array)
    elif array.dtype.kind != "f":
        raise AudioError(f"{name} has samples of type {array.dtype}: give floats in [-1, 1] or integers")
    if array.ndim == 2 and 1 <= array.shape[1] <= MAX_CHANNELS:
        array = array.mean(axis=1)
    if array.ndim != 1:
        raise AudioError(f"{name} has shape {array.shape}: give (samples,) or (samples, channels)")
    if not np.isfinite(rate) or rate <= 0:
        raise AudioError(f"{name} has a sampling rate of {rate} Hz: give the rate it was recorded at")
    array = array.astype(np.float32, copy=False)
    if not len(array):
        raise AudioError(f"{name} is empty: it has no samples; record it again")
    if not np.isfinite(array).all():
        raise AudioError(f"{name} has NaN or infinite samples: {_CONVERT}, or record it again")
    if rate != SAMPLE_RATE:
        array = soxr.resample(array, rate, SAMPLE_RATE)
        if not len(array):
            raise AudioError(f"{name} is too short: it has less than one sample at {SAMPLE_RATE} Hz")
    return array


def split_at_quiet_points(samples: Float32, max_seconds: float = 29.5) -> list[tuple[int, int]]:
    """Cut long audio into pieces that a model can take, each cut in the quietest moment near the piece's end.

    Args:
        samples: (n,) at 16 kHz.
        max_seconds: longest piece.

    Returns:
        Half-open ranges (start, stop) in samples: in order, never empty, every sample in exactly one. A quiet moment is
        the 250 ms with the least energy in the last third of what a piece may hold; of several the last.
    """
    longest = int(max_seconds * SAMPLE_RATE)
    if longest < 1:
        raise ValueError(f"max_seconds must be at least one sample, got {max_seconds}")
    pieces = []
    start = 0
    while len(samples) - start > longest:
        # The last piece is kept from being a sliver, which a model would have no context for.
        latest = min(longest, max(len(samples) - start - SAMPLE_RATE, longest * 2 // 3 + 1))
        earliest = longest * 2 // 3
        stop = start + earliest + _quietest(samples[start + earliest : start + latest])
        pieces.append((start, stop))
        start = stop
    if start < len(samples):
        pieces.append((start, len(samples)))
    return pieces


def is_silent(samples: Float32, dbfs: float) -> bool:
    """Whether even the loudest 30 ms of (n,) samples at 16 kHz are below `dbfs` (RMS; 0 dBFS is a full-scale square)."""
    if not len(samples):
        return True
    frames = np.pad(samples, (0, -len(samples) % _GATE_FRAME)).reshape(-1, _GATE_FRAME)
    loudest = np.einsum("ij,ij->i", frames, frames).max() / _GATE_FRAME
    return bool(loudest < 10.0 ** (dbfs / 10.0))


def _quietest(samples: Float32) -> int:
    """Offset in 1..n of the centre of the quietest window in (n,) samples, n > 0."""
    window = min(_QUIET_WINDOW, len(samples))
    energy = np.concatenate(([0.0], np.cumsum(np.square(samples, dtype=np.float64))))
    starts = np.arange(0, len(samples) - window + 1, _QUIET_HOP)
    sums = energy[starts + window] - energy[starts]
    last_of_the_lowest = len(sums) - 1 - int(np.argmin(sums[::-1]))
    return max(1, int(starts[last_of_the_lowest]) + window // 2)


def _decode(decoder: soundfile.SoundFile, name: str, max_seconds: float | None) -> Float32:
    """Read, downmix and resample block by block → (n,) float32 at 16 kHz."""
    stream = None
    if decoder.samplerate != SAMPLE_RATE:
        stream = soxr.ResampleStream(decoder.samplerate, SAMPLE_RATE, 1, dtype="float32")
    blocks = []
    frames = 0
    while len(block := decoder.read(_READ_FRAMES, dtype="float32", always_2d=True)):
        frames += len(block)
        if max_seconds is not None and frames > max_seconds * decoder.samplerate:
            raise TooLongError(f"{name} is longer than {max_seconds:g} s: cut it into shorter recordings")
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        blocks.append(stream.resample_chunk(mono) if stream else mono)
    if stream:
        blocks.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _scale_integers(array: npt.NDArray[np.generic]) -> Float32:
    bits = 8 * array.dtype.itemsize
    scaled = array.astype(np.float64)
    if array.dtype.kind == "u":  # unsigned samples are centred on half their range
        scaled -= 2.0 ** (bits - 1)
    return (scaled / 2.0 ** (bits - 1)).astype(np.float32)
