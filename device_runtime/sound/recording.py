"""A recording as blocks of samples, from a file, a pipe or an upload, by libsndfile or else by ffmpeg."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError, UnreadableError
from prunella.device_runtime.base.suggestions import path_hint
from prunella.device_runtime.sound.ffmpeg_decoder import RATE, ffmpeg_blocks, find_ffmpeg
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.wav_header import PatchedFile, header_with_sizes, unread

CONVERT = f"convert it with `ffmpeg -i FILE -ac 1 -ar {SAMPLE_RATE} OUT.wav`"
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz; what lies beyond is a broken header
FIFO_SECONDS = 120  # until the first byte
_READ_FRAMES = 1 << 16
_IN_MEMORY = 32 << 20  # bytes of a pipe; what goes beyond lies in a temporary file
_LONGEST_PIPE = 2 << 30  # bytes
_SHORTEST_CODED = 512  # bytes; nothing shorter is worth a process


@dataclass(frozen=True)
class Recording:
    """What was opened.

    Attributes:
        name: what errors call it.
        rate: in Hz.
        frames: as the header says, which may be wrong; 0: not known.
        blocks: decodes from the beginning → (n, channels) float32, n > 0; may be called again.
        notes: what of it is not read, in words.
    """

    name: str
    rate: int
    frames: int
    blocks: Callable[[], Iterator[Float32]]
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def open_recording(source: str | Path | BinaryIO, name: str | None = None) -> Iterator[Recording]:
    """Open a path, or a binary file object at its beginning; neither needs to be seekable.

    Args:
        source: the path, or the object, which is left open.
        name: what errors call it; by default the path, or the object's own name if it has a text for one.

    Raises:
        AudioError: missing, a directory, unreadable, empty, not audio, or a sampling rate that cannot be.
    """
    path = Path(source) if isinstance(source, (str, Path)) else None
    if name is None:
        own = str(source) if path is not None else getattr(source, "name", None)
        name = own if isinstance(own, str) and own else "the recording"
    with contextlib.ExitStack() as stack:
        try:
            file = _open_path(path, name, stack) if path is not None else cast(BinaryIO, source)
            if path is None or not _seekable(file):
                path = None
                file = _spool(file, name, stack)
            if not file.read(1):
                raise AudioError(f"{name} is empty: record or copy it again")
            yield _decoder(file, path, name, stack)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # nothing is wrong with the recording
                raise
            raise AudioError(f"{name} cannot be read ({error.strerror or error}): copy it again") from error


def check_rate(rate: float, name: str) -> None:
    """Raises:
    AudioError: a sampling rate that no recorder has.
    """
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:  # NaN is not either
        raise AudioError(f"{name} has a sampling rate of {rate} Hz: give the rate it was recorded at")


def _open_path(path: Path, name: str, stack: contextlib.ExitStack) -> BinaryIO:
    if path.is_dir():
        raise AudioError(f"{name} is a directory: name the audio files in it")
    try:
        if stat.S_ISFIFO(path.stat().st_mode):
            return stack.enter_context(_open_fifo(path, name))
        return stack.enter_context(path.open("rb"))
    except FileNotFoundError as error:
        raise AudioError(f"{name} does not exist{path_hint(name)}: check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{name} cannot be read ({reason}): check its permissions") from error


def _open_fifo(path: Path, name: str) -> BinaryIO:
    """Opening it plainly would wait for a writer for ever, and say nothing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    if not waiting.poll(1000 * FIFO_SECONDS):
        os.close(descriptor)
        raise AudioError(
            f"{name} is a pipe to which nothing was written for {FIFO_SECONDS} s: start its writer"
        )
    os.set_blocking(descriptor, True)
    return open(descriptor, "rb")  # noqa: PTH123


def _seekable(file: BinaryIO) -> bool:
    try:
        return file.seekable() and file.tell() == 0
    except OSError:
        return False


def _spool(stream: BinaryIO, name: str, stack: contextlib.ExitStack) -> BinaryIO:
    """All that a stream has, in something that can seek."""
    spool = stack.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
    size = 0
    try:
        while block := stream.read(1 << 20):
            size += len(block)
            if size > _LONGEST_PIPE:
                raise AudioError(
                    f"{name} is longer than {_LONGEST_PIPE >> 30} GiB: cut it into shorter recordings"
                )
            spool.write(block)
    except TypeError:  # a stream that gives all at once
        spool.write(stream.read())
    spool.seek(0)
    return cast(BinaryIO, spool)


def _decoder(file: BinaryIO, path: Path | None, name: str, stack: contextlib.ExitStack) -> Recording:
    import soundfile  # here, because it loads a C library that other users of this module do not need

    note, length = unread(file)
    patched = PatchedFile(file, header_with_sizes(file), length)
    try:
        decoder = stack.enter_context(soundfile.SoundFile(patched))
    except (soundfile.SoundFileError, TypeError) as error:
        if patched.error is not None:
            raise patched.error from error
        # TypeError: a name that ends in .raw, whose format nobody can know.
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        return _by_ffmpeg(file, path, name, reason, stack)
    check_rate(decoder.samplerate, name)

    first = True

    def blocks() -> Iterator[Float32]:
        nonlocal decoder, first
        try:
            if not first:  # anew, because not every codec of libsndfile can seek
                patched.seek(0)
                decoder = stack.enter_context(soundfile.SoundFile(patched))
            first = False
            while len(block := decoder.read(_READ_FRAMES, dtype="float32", always_2d=True)):
                yield block
        except soundfile.SoundFileError as error:
            reason = str(getattr(error, "error_string", error)).rstrip(".")
            raise UnreadableError(
                f"{name} is not audio that can be read here ({reason}): {CONVERT}"
            ) from error
        if patched.error is not None:
            raise patched.error

    return Recording(name, decoder.samplerate, decoder.frames, blocks, (note,) if note else ())


def _own_path(file: BinaryIO, path: Path) -> Path | None:
    """Where another program finds an open file: /dev/stdin is its own there. None: nowhere."""
    found = path.resolve()
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), found.stat()):
            return found
    return None


def _by_ffmpeg(
    file: BinaryIO, path: Path | None, name: str, reason: str, stack: contextlib.ExitStack
) -> Recording:
    program = find_ffmpeg()
    here = "wav, flac, ogg, opus and mp3 can"
    if program is None:
        here += "; webm, m4a, mp4, aac and wma where ffmpeg is installed"
    refusal = UnreadableError(f"{name} is not audio that can be read here ({reason}; {here}): {CONVERT}")
    size = file.seek(0, io.SEEK_END)
    if program is None or (size is not None and size < _SHORTEST_CODED):
        raise refusal
    if path is not None:
        path = _own_path(file, path)
    if path is None:  # a file, because the index of an mp4 may lie at its end
        copy: IO[Any] = stack.enter_context(tempfile.NamedTemporaryFile(prefix="prunella-"))  # noqa: SIM115
        file.seek(0)
        while block := file.read(1 << 20):
            copy.write(block)
        copy.flush()
        path = Path(copy.name)
    found = path

    def blocks() -> Iterator[Float32]:
        any_block = False
        for block in ffmpeg_blocks(program, found, name):
            any_block = True
            yield block
        if not any_block:
            raise refusal

    return Recording(name, RATE, 0, blocks)
