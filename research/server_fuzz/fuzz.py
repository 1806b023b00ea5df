"""Throw random requests at a running `prunella serve`, and see that it stays well.

    prunella serve BUNDLE --port 8000 --wyoming 10300 &
    python research/server_fuzz/fuzz.py --port 8000 --wyoming 10300 --pid $! --count 10000

Blobs of all kinds go in: bytes over TCP that are no HTTP, forms that break off, wrong content types, huge headers,
recordings with flipped bits, WebSocket messages, Wyoming events. Prints one JSON line with the count of every status,
the process's memory in the middle and at the end, its open files before and after, and whether a real recording is still
transcribed. Exit code 1 for a 5xx other than 503, a dead server, open files left behind, or memory that grew by more than
10 % in the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

PATH = "/v1/audio/transcriptions"


def recording(seconds: float, form: str) -> bytes:
    """A tone in a container."""
    file = io.BytesIO()
    samples = 0.3 * np.sin(np.arange(int(seconds * 16_000)) / 5)
    soundfile.write(file, samples, 16_000, format=form, subtype="VORBIS" if form == "OGG" else "PCM_16")
    return file.getvalue()


class Fuzzer:
    def __init__(self, port: int, wyoming: int | None, seed: int) -> None:
        self.port, self.wyoming = port, wyoming
        self.random = random.Random(seed)
        self.statuses: Counter[str] = Counter()
        self.sounds = [recording(0.4, form) for form in ("WAV", "FLAC", "OGG")]

    async def one(self) -> None:
        """One blob of a random kind."""
        kinds = [self.noise, self.form, self.form, self.form, self.headers, self.socket]
        kind = self.random.choice(kinds + ([self.event] * 2 if self.wyoming else []))
        try:
            answer = await asyncio.wait_for(kind(), 60)
        except (OSError, asyncio.IncompleteReadError):
            answer = "reset"
        self.statuses[f"{kind.__name__} {answer}"] += 1

    async def noise(self) -> str:
        return await self._send(self.port, self.random.randbytes(self.random.randint(1, 3_000)))

    async def headers(self) -> str:
        name = self.random.choice(
            ["X-Long", "Cookie", "Content-Length", "Transfer-Encoding", "Host", "Origin", "Expect"]
        )
        value = self.random.choice(
            ["a" * self.random.randint(1, 200_000), "-1", "1e9", "chunked, chunked", "\x00", "é"]
        )
        head = f"{self.random.choice(['GET', 'POST', 'PUT', 'X' * 100])} {PATH} HTTP/1.1\r\nHost: localhost\r\n{name}: {value}\r\n\r\n"
        return await self._send(self.port, head.encode("latin-1"), eof=False)

    async def form(self) -> str:
        body = self._body()
        kind = self.random.choice(
            ["multipart/form-data; boundary=b"] * 6 + ["multipart/form-data", "text/plain", "audio/wav", ""]
        )
        length = len(body) + self.random.choice([0, 0, 0, 0, 100, -min(5, len(body))])
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        return await self._send(self.port, head.encode() + body, eof=length > len(body))

    def _body(self) -> bytes:
        sound = bytearray(self.random.choice(self.sounds))
        for _ in range(self.random.choice([0, 0, 1, 3, 30])):
            sound[self.random.randrange(min(200, len(sound)))] = self.random.randrange(256)
        cut = sound[: self.random.randint(0, len(sound))] if self.random.random() < 0.5 else sound
        fields = b"".join(
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{self._value()}\r\n'.encode()
            for name in ("response_format", "stream", "language", "phrases", "timestamp_granularities[]")
            if self.random.random() < 0.3
        )
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        body = fields + head + bytes(cut) + self.random.choice([b"\r\n--b--\r\n"] * 3 + [b"", b"\r\n--b"])
        if self.random.random() < 0.2:
            at = self.random.randrange(len(body))
            body = body[:at] + self.random.randbytes(8) + body[at + 8 :]
        return body

    def _value(self) -> str:
        return self.random.choice(
            [
                "json",
                "text",
                "srt",
                "vtt",
                "verbose_json",
                "true",
                "de",
                "word",
                "go (",
                "go | stop",
                "\x00",
                "é" * 50,
            ]
        )

    async def socket(self) -> str:
        try:
            async with connect(f"ws://localhost:{self.port}/v1/live", open_timeout=30) as socket:
                for _ in range(self.random.randint(1, 5)):
                    await socket.send(
                        self.random.choice(
                            [
                                self.random.randbytes(self.random.randint(0, 4_000)),
                                '{"type": "start", "sample_rate": 16000}',
                                '{"type": "start", "sample_rate": "x"}',
                                '{"type": "stop"}',
                                "[" * 5_000,
                                "null",
                            ]
                        )
                    )
                await socket.send("x")
                async for _ in socket:
                    pass
                return str(socket.close_code)
        except ConnectionClosed as error:
            return str(error.rcvd.code if error.rcvd else "gone")
        except InvalidHandshake as error:
            return type(error).__name__

    async def event(self) -> str:
        header = {
            "type": self.random.choice(
                ["audio-start", "audio-chunk", "audio-stop", "transcribe", "describe", "x", None]
            ),
            "data": self.random.choice(
                [{"rate": 16_000, "width": 2, "channels": 1}, {"rate": "x"}, None, []]
            ),
            "payload_length": self.random.choice([0, 4, -1, 10**12, "x", None]),
        }
        blob = json.dumps(header).encode() + b"\n" + self.random.randbytes(4)
        return await self._send(self.wyoming or 0, self.random.choice([blob * 3, self.random.randbytes(100)]))

    async def _send(self, port: int, blob: bytes, *, eof: bool = True) -> str:
        """Send, and say what came back. An early end of the stream aborts a request, so whole ones leave it open."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(blob)
            if self.random.random() < 0.1:
                return "left"
            if eof:
                writer.write_eof()
            answer = await asyncio.wait_for(reader.read(65_536), 3 if not eof else 40)
            found = re.match(rb"HTTP/1\.1 (\d+)", answer)
            return found[1].decode() if found else "closed" if not answer else "bytes"
        except asyncio.TimeoutError:
            return "waits"
        finally:
            writer.close()


def memory_mb(pid: int) -> float:
    """Resident memory that is the process's own."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def fuzz(args: argparse.Namespace) -> dict[str, object]:
    fuzzer = Fuzzer(args.port, args.wyoming, args.seed)
    files_before = open_files(args.pid)
    memory = []
    for half in range(2):
        for _ in range(args.count // 2 // args.at_once):
            await asyncio.gather(*(fuzzer.one() for _ in range(args.at_once)))
        await asyncio.sleep(2 if half == 0 else 6)  # what was left hanging ends
        memory.append(round(memory_mb(args.pid), 1))
    return {
        "blobs": sum(fuzzer.statuses.values()),
        "statuses": dict(sorted(fuzzer.statuses.items())),
        "memory_mb": memory,
        "open_files": [files_before, open_files(args.pid)],
    }


async def still_well(port: int) -> bool:
    """Whether a sound recording gets a 200."""
    sound = recording(1.0, "WAV")
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = head + sound + b"\r\n--b--\r\n"
    request = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode() + body)
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8_000)
    parser.add_argument("--wyoming", type=int)
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    report = asyncio.run(fuzz(args))
    report["still_well"] = asyncio.run(still_well(args.port))
    report["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(report))
    bad = [name for name in report["statuses"] if re.search(r" 5\d\d$", name) and not name.endswith(" 503")]
    middle, end = report["memory_mb"]
    before, after = report["open_files"]
    return int(bool(bad) or not report["still_well"] or end > 1.1 * middle or after > before + 4)


if __name__ == "__main__":
    raise SystemExit(main())
