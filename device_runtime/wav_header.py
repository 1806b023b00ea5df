"""WAV headers that lie: a recorder that was killed never filled in how many samples follow."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

_MOST_CHUNKS = 64
_LARGEST = 0xFFFF_FFFE


class PatchedFile(io.RawIOBase):
    """A seekable binary file whose beginning reads otherwise; the file itself is not written, nor closed.

    What reading it raises is kept in `error`: a C library that reads through callbacks would lose it.

    Args:
        file: seekable, at any position.
        start: bytes in place of the first `len(start)`.
    """

    def __init__(self, file: BinaryIO, start: bytes = b"") -> None:
        super().__init__()
        self._file = file
        self._start = start
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):  # before the beginning, where a broken header points
            return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        position = self._file.tell()
        try:
            data = self._file.read(len(buffer))
        except OSError as error:
            self.error = error
            return 0
        patch = self._start[position : position + len(data)]
        buffer[: len(data)] = patch + data[len(patch) :]
        return len(data)


def header_with_sizes(file: BinaryIO) -> bytes:
    """The beginning of a WAV with its sizes filled in, where it says that no samples follow and bytes do; else b"".

    `file` is seekable and is left at its beginning.
    """
    file.seek(0, io.SEEK_END)
    length = file.tell()
    file.seek(0)
    head = file.read(12)
    try:
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return b""
        position = 12
        for _ in range(_MOST_CHUNKS):
            file.seek(position)
            chunk = file.read(8)
            if len(chunk) < 8:
                return b""
            size = struct.unpack("<I", chunk[4:])[0]
            position += 8
            if chunk[:4] == b"data":
                if size or position >= length or _only_chunks(file, position, length):
                    return b""
                file.seek(0)
                start = bytearray(file.read(position))
                struct.pack_into("<I", start, 4, min(length - 8, _LARGEST))
                struct.pack_into("<I", start, position - 4, min(length - position, _LARGEST))
                return bytes(start)
            position += size + size % 2
        return b""
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
