"""WAV headers that lie: a recorder that was killed never filled in how many samples follow."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

_MOST_CHUNKS = 64
_LARGEST = 0xFFFF_FFFE
_NOT_KNOWN = 0x7FF0_0000  # a size from here on is what a program writes that does not know it: to a pipe
_PADDING = 4096  # bytes behind a recording that nobody misses
_NONE_WRITTEN = 64  # bytes of samples; a size up to here, with many behind it, is as little filled in as 0


class PatchedFile(io.RawIOBase):
    """A seekable binary file whose beginning reads otherwise; the file itself is not written, nor closed.

    What reading it raises is kept in `error`: a C library that reads through callbacks would lose it.

    Args:
        file: seekable, at any position.
        start: bytes in place of the first `len(start)`.
        length: bytes after which it ends; None: its own.
    """

    def __init__(self, file: BinaryIO, start: bytes = b"", length: int | None = None) -> None:
        super().__init__()
        self._length = length
        self._file = file
        self._start = start
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self._length is not None:
            offset, whence = self._length + offset, io.SEEK_SET
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):  # before the beginning, where a broken header points
            return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        position = self._file.tell()
        try:
            count = len(buffer) if self._length is None else min(len(buffer), max(0, self._length - position))
            data = self._file.read(count)
        except OSError as error:
            self.error = error
            return 0
        patch = self._start[position : position + len(data)]
        buffer[: len(data)] = patch + data[len(patch) :]
        return len(data)


def header_with_sizes(file: BinaryIO) -> bytes:
    """The beginning of a WAV with its sizes filled in, where it says that next to no samples follow and more do; else b"".

    `file` is seekable and is left at its beginning.
    """
    found = _find_samples(file)
    if found is None:
        return b""
    position, size, length = found
    stop = position + size + size % 2
    if size > _NONE_WRITTEN or stop >= length or _only_chunks(file, stop, length):
        file.seek(0)
        return b""
    file.seek(0)
    start = bytearray(file.read(position))
    struct.pack_into("<I", start, 4, min(length - 8, _LARGEST))
    struct.pack_into("<I", start, position - 4, min(length - position, _LARGEST))
    file.seek(0)
    return bytes(start)


def unread(file: BinaryIO) -> tuple[str | None, int | None]:
    """What a WAV holds that its header does not tell of, or tells of and does not hold: mostly nothing.

    Returns:
        It in words, and the length of the file without it where it would be in a decoder's way.

    `file` is seekable and is left at its beginning.
    """
    found = _find_samples(file)
    if found is None:
        return None, None
    position, size, length = found
    stop = position + size + size % 2
    try:
        if size >= _NOT_KNOWN or size <= _NONE_WRITTEN or stop in (length, length + 1):
            return None, None
        if stop > length:
            share = round(100 * (length - position) / size)
            return f"it breaks off: {share} % of what its header promises are there", None
        file.seek(stop)
        if file.read(4) in (b"RIFF", b"RF64"):
            return "another recording behind the first was not read: give each a file of its own", stop
        if length - stop > _PADDING and not _only_chunks(file, stop, length):
            return f"{length - stop} bytes behind the samples that its header promises were not read", stop
        return None, None
    finally:
        file.seek(0)


def _find_samples(file: BinaryIO) -> tuple[int, int, int] | None:
    """Of a WAV: where its samples begin, how many bytes of them the header promises, and the file's length.

    `file` is left at its beginning.
    """
    file.seek(0, io.SEEK_END)
    length = file.tell()
    file.seek(0)
    head = file.read(12)
    try:
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return None
        position = 12
        for _ in range(_MOST_CHUNKS):
            file.seek(position)
            chunk = file.read(8)
            if len(chunk) < 8:
                return None
            size = struct.unpack("<I", chunk[4:])[0]
            position += 8
            if chunk[:4] == b"data":
                return position, size, length
            position += size + size % 2
        return None
    finally:
        file.seek(0)


def _only_chunks(file: BinaryIO, position: int, length: int) -> bool:
    """Whether what follows is not samples but whole chunks up to the end: an empty recording with a title."""
    while position < length:
        file.seek(position)
        chunk = file.read(8)
        if len(chunk) < 8 or not chunk[:4].isascii() or not chunk[:4].decode("ascii").isprintable():
            return False
        size = struct.unpack("<I", chunk[4:])[0]
        position += 8 + size + size % 2
    return position in (length, length + 1)
