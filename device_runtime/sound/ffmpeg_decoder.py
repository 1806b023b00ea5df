"""What libsndfile cannot read (webm, m4a, mp4, aac, wma), through an `ffmpeg` on the PATH: as a pipe, with limits."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError

RATE = 48_000  # what most of these formats hold; the resampler of every other file makes 16 kHz of it
_SECONDS = 600.0  # longest that one file may take
_READ_FRAMES = 1 << 16
_CHANNELS = 2  # so that channels that cancel each other can still be told apart
# Containers that hold audio, and nothing that names other files or hosts: no playlists, no concat scripts.
_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,eac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp3,mpeg,mpegts,ogg,rm,tta,voc,w64,wav,wv"
)


def find_ffmpeg() -> str | None:
    """The program's path, or None where it is not installed."""
    return shutil.which("ffmpeg")


def ffmpeg_blocks(program: str, path: Path, name: str, *, seconds: float = _SECONDS) -> Iterator[Float32]:
    """Decode the first audio track of a file → blocks of (n, 2) float32 at `RATE`, none if it has none.

    Args:
        program: as `find_ffmpeg` says.
        path: the file; ffmpeg opens nothing else, and no address.
        name: what errors call it.
        seconds: after which the program is ended.

    Raises:
        AudioError: the program took too long, or cannot be started.
    """
    command = [program, "-nostdin", "-hide_banner", "-v", "quiet", "-threads", "1"]
    command += ["-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS]
    command += ["-i", f"file:{path.absolute()}", "-map", "0:a:0", "-vn", "-sn", "-dn"]
    command += ["-ac", str(_CHANNELS), "-ar", str(RATE), "-c:a", "pcm_f32le", "-f", "f32le", "pipe:1"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise AudioError(
            f"{name} needs ffmpeg, which cannot be started ({error.strerror}): install it anew"
        ) from error
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    size = 4 * _CHANNELS
    try:
        while data := process.stdout.read(_READ_FRAMES * size):
            yield np.frombuffer(data[: len(data) // size * size], "<f4").reshape(-1, _CHANNELS)
        if late.is_set():
            raise AudioError(f"{name} took ffmpeg more than {seconds:g} s: cut it into shorter recordings")
    finally:
        timer.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
