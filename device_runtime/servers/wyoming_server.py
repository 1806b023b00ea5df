"""Speech to text for Home Assistant: the Wyoming protocol over a `TranscriptionService`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import struct
import sys
import tempfile
import threading
import time
from typing import BinaryIO, cast

from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncTcpServer, HandlerFactory

from prunella._version import __version__
from prunella.device_runtime.base.errors import AudioError, PrunellaError
from prunella.device_runtime.servers.addresses import listen_at
from prunella.device_runtime.servers.clients import Proxies
from prunella.device_runtime.servers.connections import Connection, Connections
from prunella.device_runtime.servers.service import Recognition, TranscriptionService
from prunella.device_runtime.sound.audio import MAX_CHANNELS, open_audio

_LARGEST = 1 << 20  # bytes of the audio of one event of a client that holds a slot
_SMALL = 1 << 16  # of anything else: JSON takes many times its bytes
_HEADER = 44  # bytes of a WAV file before its samples
_WIDTHS = (1, 2, 4)  # bytes of a sample
_SLOWEST, _FASTEST = 4_000, 192_000
_IN_MEMORY = 1 << 20  # bytes of an utterance, as of an upload; beyond that it waits in a file
_PATIENCE = 10  # times `idle_seconds` that a connection may be silent between two utterances


async def start_wyoming(service: TranscriptionService, host: str, port: int) -> AsyncTcpServer:
    """Begin to serve; `stop()` of what is returned ends it.

    Raises:
        UsageError: the host is none of this machine's.
        PrunellaError: the port is taken.
    """
    server = _Server(listen_at(host, port, "--wyoming PORT"))
    connections = Connections(service.limits.connections, _PATIENCE * service.limits.idle_seconds)
    await server.start(lambda reader, writer: _Handler(service, reader, writer, connections))
    return server


class _Server(AsyncTcpServer):
    """At a socket that is bound as that of HTTP is: where the host is ::, at IPv4 too."""

    def __init__(self, bound: socket.socket) -> None:
        super().__init__(*bound.getsockname()[:2])
        self._bound = bound

    async def start(self, handler_factory: HandlerFactory) -> None:
        callback = functools.partial(self._handler_callback, handler_factory)
        self._server = await asyncio.start_server(callback, sock=self._bound)


class _BoundedReader:
    """A stream that takes no event larger than this server wants, and waits for none for ever."""

    def __init__(self, reader: asyncio.StreamReader, idle: float) -> None:
        self._reader = reader
        self._idle = idle
        self.in_utterance = False  # only then does the client owe something at once
        self._data_comes = False

    async def readline(self) -> bytes:
        patience = self._idle if self.in_utterance else _PATIENCE * self._idle
        line = await asyncio.wait_for(self._reader.readline(), patience)
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            self._data_comes = json.loads(line).get("data_length") not in (None, 0)
        return line

    async def readexactly(self, count: int) -> bytes:
        most = _LARGEST if self.in_utterance and not self._data_comes else _SMALL
        self._data_comes = False
        if not isinstance(count, int) or count > most:
            raise ValueError(f"an event of {count} bytes: at most {most} are taken")
        return await asyncio.wait_for(self._reader.readexactly(count), self._idle)

    def feed_eof(self) -> None:
        self._reader.feed_eof()


class _Handler(AsyncEventHandler):
    """One connection; any number of utterances after one another. It holds a slot while it holds audio."""

    def __init__(
        self,
        service: TranscriptionService,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connections: Connections,
    ) -> None:
        self._bounded = _BoundedReader(reader, service.limits.idle_seconds)
        super().__init__(self._bounded, writer)  # type: ignore[arg-type]
        self._service = service
        self._connections = connections
        self._connection: Connection | None = None
        self._held = contextlib.ExitStack()
        peer = writer.get_extra_info("peername")
        self._client = Proxies().client(str(peer[0])) if peer else "local"
        self._gone = threading.Event()
        self._language: str | None = None  # of the next utterance, see `TranscriptionService.find_language`
        self._clear()

    def _clear(self) -> None:
        """Forget the utterance, and give its slot back."""
        self._held.close()
        self._format: AudioStart | None = None
        self._bounded.in_utterance = False

    async def run(self) -> None:
        abort = self.writer.transport.abort
        self._connection = self._connections.enter(self._client, abort)
        if self._connection is None:
            abort()  # an answer could not be told from one to what was asked
            return
        try:
            await super().run()
            await asyncio.wait_for(self.writer.wait_closed(), self._service.limits.idle_seconds)
        except (asyncio.IncompleteReadError, asyncio.TimeoutError, ConnectionError):
            pass  # the client went, or stalled
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            sys.stderr.write(f"prunella: a Wyoming client at {self._client} sent no event ({error!r})\n")
        finally:
            self._clear()
            abort()  # what it has not read by now is not kept for it
            self._connection.leave()

    async def disconnect(self) -> None:
        self._gone.set()

    async def write_event(self, event: Event) -> None:
        await asyncio.wait_for(super().write_event(event), self._service.limits.idle_seconds)

    async def handle_event(self, event: Event) -> bool:
        if self._connection is not None:
            self._connection.owes(False)
        try:
            return await self._handle(event)
        except PrunellaError as error:
            self._clear()
            await self.write_event(Error(str(error), type(error).__name__).event())
            return False
        finally:
            if self._connection is not None:  # in an utterance it has a deadline of its own
                self._connection.owes(not self._bounded.in_utterance)

    async def _handle(self, event: Event) -> bool:
        if Describe.is_type(event.type):
            await self.write_event(_info(self._service).event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(text=Ping.from_event(event).text).event())
        elif Transcribe.is_type(event.type):
            self._clear()
            asked = event.data.get("language")  # alone: a later client may say more that is not known here
            self._language = self._service.find_language(asked) if isinstance(asked, str) else None
        elif AudioStart.is_type(event.type):
            self._clear()
            self._begin(AudioStart.from_event(event))
        elif AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            if self._format is None:
                self._begin(AudioStart(chunk.rate, chunk.width, chunk.channels))
            self._append(chunk)
        elif AudioStop.is_type(event.type):
            await self._answer()
        return True

    def _begin(self, start: AudioStart) -> None:
        sound = (
            start.width in _WIDTHS
            and isinstance(start.rate, int)
            and isinstance(start.channels, int)
            and _SLOWEST <= start.rate <= _FASTEST
            and 0 < start.channels <= MAX_CHANNELS
        )
        if not sound:
            raise AudioError(
                f"audio of {start.rate} Hz, {start.width} bytes a sample and {start.channels} channels is not taken: "
                "send 16000 Hz, 2 bytes, 1 channel"
            )
        self._held.enter_context(self._service.slot(self._client))
        self._audio = self._held.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
        self._audio.write(bytes(_HEADER))
        self._format = start
        self._until = time.monotonic() + self._service.limits.seconds + self._service.limits.idle_seconds
        self._bounded.in_utterance = True

    def _append(self, chunk: AudioChunk) -> None:
        wanted = self._format
        assert wanted is not None
        if (chunk.rate, chunk.width, chunk.channels) != (wanted.rate, wanted.width, wanted.channels):
            raise AudioError(
                "the format of the audio changed within an utterance: keep to that of audio-start"
            )
        audio = chunk.audio or b""
        limits = self._service.limits
        size = self._audio.tell() - _HEADER + len(audio)
        # The client's own format says how many seconds these are: bytes are bounded whatever it says.
        if size > limits.seconds * wanted.rate * wanted.width * wanted.channels:
            raise AudioError(f"the audio is longer than {limits.seconds:g} s: send less at once")
        if size > limits.upload_bytes:
            raise AudioError(f"the audio is larger than {limits.upload_bytes} bytes: send less at once")
        if time.monotonic() > self._until:
            raise AudioError("the audio comes too slowly: send it as fast as it is spoken")
        self._audio.write(audio)

    async def _answer(self) -> None:
        asked, self._language = self._language, None
        told = (self._service.language if asked is None else asked) or None
        await self.write_event(TranscriptStart(language=told).event())
        recognition = Recognition(0.0)
        if self._format is not None:
            held = self._held.pop_all()
            try:
                await self._service.turn(self._service.commands, held, self._gone)
            except BaseException:
                held.close()
                raise
            recognition = await self._service.start(
                held, functools.partial(self._recognize, self._format, asked)
            )
        self._clear()
        text = recognition.text
        if text:
            await self.write_event(TranscriptChunk(text=text).event())
        answer = Transcript(text=text, language=recognition.language or told).event()
        if (
            recognition.warnings
        ):  # the protocol has no place for them: clients that do not look see the text alone
            answer.data["warnings"] = list(recognition.warnings)
            sys.stderr.write(
                f"prunella: a Wyoming client at {self._client}: {'; '.join(recognition.warnings)}\n"
            )
        await self.write_event(answer)
        await self.write_event(TranscriptStop().event())

    def _recognize(self, format_: AudioStart, language: str | None) -> Recognition:
        frame = format_.width * format_.channels
        size = (self._audio.tell() - _HEADER) // frame * frame
        if not size:
            return Recognition(0.0)
        # Read as a file is, in blocks: of whatever format it is, memory is that of its seconds at 16 kHz.
        self._audio.seek(0)
        self._audio.write(_wave_header(format_, size))
        self._audio.truncate(_HEADER + size)
        self._audio.seek(0)
        limit = self._service.limits.seconds
        with open_audio(cast(BinaryIO, self._audio), max_seconds=limit, name="the audio") as audio:
            recognizer = self._service.choose(None, language)
            return self._service.recognize(audio, recognizer, gone=self._gone)


def _wave_header(format_: AudioStart, size: int) -> bytes:
    """Of a WAV file of `size` bytes of samples; `_HEADER` bytes."""
    frame = format_.width * format_.channels
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", _HEADER - 8 + size, b"WAVE", b"fmt ", 16, 1, format_.channels, format_.rate),
        *(frame * format_.rate, frame, 8 * format_.width, b"data", size),
    )


def _info(service: TranscriptionService) -> Info:
    origin = Attribution("prunella", "https://pypi.org/project/prunella")
    model = AsrModel(
        name=service.model,
        attribution=origin,
        installed=True,
        description="a pruned speech LLM",
        version=__version__,
        languages=[one.code for one in service.languages] or [service.language],
    )
    program = AsrProgram(
        name="prunella",
        attribution=origin,
        installed=True,
        description="speech LLMs on small machines",
        version=__version__,
        models=[model],
        supports_transcript_streaming=True,
    )
    return Info(asr=[program])
