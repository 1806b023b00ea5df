"""The Wyoming server, spoken to with the stock client and with bytes that no client sends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import socket
import tracemalloc
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from prunella.device_runtime.servers.service import Limits, Recognition, TranscriptionService
from prunella.device_runtime.servers.wyoming_server import start_wyoming
from prunella.device_runtime.transcript import Transcript as Text

TONE = (9_000 * np.sin(np.arange(16_000) / 5)).astype("<i2")


class Fixed:
    """Always says the same."""

    def stream(self, samples, *, draft=()):
        yield "turn on"
        return Text("turn on the light")


@pytest.fixture
def service() -> TranscriptionService:
    limits = Limits(seconds=5.0, idle_seconds=2.0, requests=1)
    return TranscriptionService(
        Fixed(), "tiny", "en", limits, make_vad=lambda: lambda frame: float(np.abs(frame).max() > 0.05)
    )


def limited(service: TranscriptionService, **limits: float) -> TranscriptionService:
    return dataclasses.replace(service, limits=dataclasses.replace(service.limits, **limits))


def served(service: TranscriptionService, talk: Callable[[int], Awaitable[None]]) -> None:
    """Run a conversation with a server of its own, given its port."""

    async def run() -> None:
        server = await start_wyoming(service, "127.0.0.1", 0)
        try:
            await asyncio.wait_for(talk(server.port), 20)
        finally:
            await server.stop()

    asyncio.run(run())


async def say(client: AsyncTcpClient, samples: np.ndarray, rate: int, channels: int = 1) -> list:
    await client.write_event(Transcribe(language="en").event())
    await client.write_event(AudioStart(rate, 2, channels).event())
    for block in np.array_split(samples, 7):
        await client.write_event(AudioChunk(rate, 2, channels, block.tobytes()).event())
    await client.write_event(AudioStop().event())
    events = []
    while not events or events[-1].type not in ("transcript-stop", "error"):
        events.append(await client.read_event())
        assert events[-1] is not None
    return events


def test_a_client_gets_transcripts_one_after_the_other(service):
    async def talk(port: int) -> None:
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Describe().event())
            (program,) = Info.from_event(await client.read_event()).asr
            assert [(m.name, m.languages) for m in program.models] == [("tiny", ["en"])]
            await client.write_event(Ping(text="there?").event())
            assert Pong.from_event(await client.read_event()).text == "there?"
            for samples, rate, channels in (
                (TONE, 16_000, 1),
                (np.repeat(np.repeat(TONE, 3), 2), 48_000, 2),
            ):
                events = await say(client, samples, rate, channels)
                assert [event.type for event in events] == [
                    "transcript-start",
                    "transcript-chunk",
                    "transcript",
                    "transcript-stop",
                ]
                assert Transcript.from_event(events[2]).text == "turn on the light"
            silent = await say(client, 0 * TONE, 16_000)
            assert [e.data["text"] for e in silent if e.type == "transcript"] == [""]
            quiet = await say(client, TONE // 500, 16_000)
            (answer,) = [e.data for e in quiet if e.type == "transcript"]
            assert answer["text"] == "" and "very quiet" in answer["warnings"][0]

    served(service, talk)


def test_an_audio_stop_alone_is_an_empty_transcript(service):
    async def talk(port: int) -> None:
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(AudioStop().event())
            events = [await client.read_event() for _ in range(3)]
            assert [event.type for event in events] == ["transcript-start", "transcript", "transcript-stop"]

    served(service, talk)


@pytest.mark.parametrize(
    ("start", "audio", "message"),
    [
        (AudioStart(0, 2, 1), b"", "not taken"),
        (AudioStart(1, 2, 1), b"", "not taken"),
        (AudioStart(10**9, 2, 1), b"", "not taken"),
        (AudioStart(16_000, 3, 1), b"", "not taken"),
        (AudioStart(16_000, 2, 99), b"", "not taken"),
        (AudioStart(8_000, 2, 1), bytes(2), "format"),
        (AudioStart(16_000, 2, 1), bytes(200_000), "longer than 5 s"),
    ],
)
def test_unusable_audio_is_refused(service, start, audio, message):
    async def talk(port: int) -> None:
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(start.event())
            if audio:
                await client.write_event(AudioChunk(16_000, 2, 1, audio).event())
            error = Error.from_event(await client.read_event())
            assert message in error.text
            assert await client.read_event() is None, "the connection is closed"

    served(service, talk)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("rate", [16_000, 192_000])
def test_the_bytes_of_an_utterance_are_bounded_whatever_format_is_claimed(service, rate, width):
    service = limited(service, upload_bytes=20_000, seconds=3_600.0)

    async def talk(port: int) -> None:
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(AudioStart(rate, width, 8).event())
            for _ in range(3):
                await client.write_event(AudioChunk(rate, width, 8, bytes(8_000)).event())
            assert "larger than 20000 bytes" in Error.from_event(await client.read_event()).text
            assert await client.read_event() is None, "the connection is closed"
        assert service.busy == 0

    served(service, talk)


@pytest.mark.parametrize(("kind", "width"), [("u1", 1), ("<i2", 2), ("<i4", 4)])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (8_000, 2), (48_000, 8)])
def test_audio_of_any_format_is_heard_alike(service, kind, width, rate, channels):
    heard: list[np.ndarray] = []

    class Eavesdropping(TranscriptionService):
        def recognize(self, samples, recognizer=None, **_):
            heard.append(np.concatenate(list(samples.blocks())))
            return Recognition(1.0)

    service = Eavesdropping(service.recordings, "tiny", limits=service.limits)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    full = float(2 ** (8 * width - 1))
    values = np.round(tone * (full - 1) + (full if kind == "u1" else 0)).astype(kind)
    audio = np.repeat(values, channels).tobytes() + bytes(max(0, width * channels - 1))  # and part of a frame

    async def talk(port: int) -> None:
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(AudioStart(rate, width, channels).event())
            for begin in range(0, len(audio), 100_000):
                chunk = audio[begin : begin + 100_000]
                await client.write_event(AudioChunk(rate, width, channels, chunk).event())
            await client.write_event(AudioStop().event())
            while (await client.read_event()).type != "transcript-stop":
                pass

    served(service, talk)
    (samples,) = heard
    wanted = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(samples) == 16_000
    assert np.abs(samples - wanted)[200:-200].max() < 0.02


def test_audio_takes_no_more_memory_than_its_seconds(service):
    service = limited(service, seconds=3_600.0)
    block = bytes([128]) * 1_000_000

    async def talk(port: int) -> None:
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(AudioStart(192_000, 1, 1).event())
            for _ in range(16):  # 83 s: 5 MB at 16 kHz
                await client.write_event(AudioChunk(192_000, 1, 1, block).event())
            tracemalloc.start()
            await client.write_event(AudioStop().event())
            while (await client.read_event()).type != "transcript-stop":
                pass
            assert tracemalloc.get_traced_memory()[1] < 32_000_000
            tracemalloc.stop()

    served(service, talk)


def test_a_place_is_held_from_the_start_of_the_audio_and_given_back(service):
    async def talk(port: int) -> None:
        async with AsyncTcpClient("127.0.0.1", port) as first:
            await first.write_event(AudioStart(16_000, 2, 1).event())
            await first.write_event(AudioChunk(16_000, 2, 1, TONE.tobytes()).event())
            while not service.busy:
                await asyncio.sleep(0.01)
            async with AsyncTcpClient("127.0.0.1", port) as second:
                await second.write_event(AudioStart(16_000, 2, 1).event())
                assert Error.from_event(await second.read_event()).code == "BusyError"
                assert await second.read_event() is None, "the connection is closed"
            await first.write_event(AudioStop().event())
            while (await first.read_event()).type != "transcript-stop":
                pass
            assert service.busy == 0
            await first.write_event(AudioStart(16_000, 2, 1).event())
            while not service.busy:
                await asyncio.sleep(0.01)
        while service.busy:  # its client has gone
            await asyncio.sleep(0.01)

    served(service, talk)


def test_who_says_nothing_gives_way_and_is_not_kept(service):
    service = limited(service, idle_seconds=0.2, live=1)

    async def talk(port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(service.limits.connections)]
        await asyncio.sleep(0.1)  # all are accepted
        async with AsyncTcpClient("127.0.0.1", port) as client:
            assert (await say(client, TONE, 16_000))[-1].type == "transcript-stop"
        assert await silent[0][0].read() == b"", "it was silent longest"
        assert not any(reader.at_eof() for reader, _ in silent[1:])
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()

    served(service, talk)


def test_a_client_that_reads_no_answers_is_let_go(service):
    service = limited(service, idle_seconds=0.2)

    async def talk(port: int) -> None:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        _, writer = await asyncio.open_connection(sock=plain)
        writer.transport.pause_reading()
        asked = (json.dumps({"type": "describe"}) + "\n").encode() * 1_000
        with pytest.raises(ConnectionError):
            while True:
                writer.write(asked)
                await writer.drain()

    served(service, talk)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"type": "ping", "data_length": 70_000}, b""),
        ({"type": "audio-chunk", "payload_length": 70_000}, b""),  # no place is held yet
        ({"type": "describe", "data_length": 2, "payload_length": 70_000}, b"{}"),
    ],
)
def test_without_a_place_an_event_is_small(service, header, body):
    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(json.dumps(header).encode() + b"\n" + body)
        assert await reader.read() == b""
        writer.close()

    served(service, talk)


def test_an_event_too_large_to_take_is_not_waited_for(service):
    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'{"type": "audio-chunk", "payload_length": 9999999999}\n')
        assert await reader.read() == b""
        writer.close()

    served(service, talk)


_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["audio-start", "audio-chunk", "audio-stop", "transcribe", "describe", "ping"]
        )
        | st.none()
        | st.integers(),
        "data": st.dictionaries(
            st.sampled_from(["rate", "width", "channels", "text", "name"]),
            st.sampled_from([16_000, 2, 1, 0, -1, 2**40, 1.5, "x", None, []]),
        )
        | st.none()
        | st.just([]),
        "data_length": st.sampled_from([2, -1, "x", 2**40]),
        "payload_length": st.sampled_from([2, 3, -1, "x", 2**40]),
    },
)
_BYTES = st.binary(max_size=100) | st.lists(
    _HEADERS.map(lambda event: json.dumps(event).encode() + b"\n{}ab"), max_size=4
).map(b"".join)


def test_any_bytes_leave_the_server_well(service, capfd):
    async def talk(port: int) -> None:
        troubles = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        for blob in blobs:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(blob)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        async with AsyncTcpClient("127.0.0.1", port) as client:
            assert (await say(client, TONE, 16_000))[-1].type == "transcript-stop"
        gc.collect()  # a task that failed unseen tells when it is collected
        assert troubles == []
        assert service.busy == 0

    blobs: list[bytes] = []

    @given(_BYTES)
    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def collect(blob: bytes) -> None:
        blobs.append(blob)

    collect()
    served(service, talk)
    assert "Traceback" not in capfd.readouterr().err
