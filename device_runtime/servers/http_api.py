"""OpenAI's transcription endpoint over a `TranscriptionService`, and the page, as one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from prunella.device_runtime.base.errors import AudioError, PrunellaError, TooLongError, UnreadableError
from prunella.device_runtime.servers.access import Access, AccessMiddleware, KnownClients, problem
from prunella.device_runtime.servers.asked import Asked, read_fields
from prunella.device_runtime.servers.clients import Proxies
from prunella.device_runtime.servers.formats import FORMATS, render, subtitles, summary
from prunella.device_runtime.servers.live_socket import live_socket
from prunella.device_runtime.servers.page_files import page_routes
from prunella.device_runtime.servers.service import (
    PHRASES_BYTES,
    BusyError,
    CancelledError,
    Recognition,
    TranscriptionService,
    watch,
)
from prunella.device_runtime.sound.audio import open_audio

UNREADABLE = "unreadable_audio"  # the page then lets the browser decode it
_FIELD_BYTES = PHRASES_BYTES
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HEADER = 2_000  # characters of warnings
_TRANSCRIPTIONS = "/v1/audio/transcriptions"


def create_app(
    service: TranscriptionService, access: Access | None = None, proxies: Proxies | None = None
) -> Starlette:
    """The HTTP server: `POST /v1/audio/transcriptions`, `GET /v1/models`, `GET /health`, `GET /` (a page), and the
    WebSocket `/v1/live`.

    Args:
        service: the model and its limits.
        access: who is let in; by default whoever reaches the port, by this machine's names.
        proxies: whose word is taken for who a client is; by default nobody's.
    """
    access = access or Access()
    limits = service.limits
    answers = _Answers(service, access)
    return Starlette(
        routes=[
            *page_routes(),
            Route("/health", answers.health),
            Route("/v1/models", answers.models),
            Route("/v1/models/{name:path}", answers.model),
            Route(_TRANSCRIPTIONS, answers.transcriptions, methods=["POST"]),
            Route("/v1/audio/translations", answers.translations, methods=["GET", "POST"]),
            WebSocketRoute("/v1/live", live_socket(service, access)),
        ],
        middleware=[
            Middleware(KnownClients, proxies=proxies or Proxies()),
            Middleware(
                AccessMiddleware,
                access=access,
                upload_bytes=limits.upload_bytes,
                idle_seconds=limits.idle_seconds,
                upload_seconds=limits.upload_seconds,
            ),
        ],
        exception_handlers={
            HTTPException: _http_problem,
            BusyError: _busy,
            TooLongError: _status(413),
            UnreadableError: _status(400, UNREADABLE),
            AudioError: _status(400),
            OSError: _no_room,
            PrunellaError: _status(400),
            ClientDisconnect: _status(499),
            CancelledError: _status(499),
        },
    )


class _Answers:
    """What the routes answer, over one service."""

    def __init__(self, service: TranscriptionService, access: Access) -> None:
        self._service = service
        self._access = access

    async def health(self, _: Request) -> Response:
        service = self._service
        body = {
            "status": "closing" if service.closing else "ok",
            "model": service.model,
            "language": service.language,
            "busy": service.busy,
            "needs_key": self._access.api_key is not None,
        }
        return JSONResponse(body, 503 if service.closing else 200)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(self._service)]})

    async def model(self, request: Request) -> Response:
        own = self._service.model
        if request.path_params["name"] != own:
            return problem(404, f"there is no such model here: this server has '{own}'")
        return JSONResponse(_model(self._service))

    async def transcriptions(self, request: Request) -> Response:
        return await _transcribe(self._service, request)

    async def translations(self, _: Request) -> Response:
        return problem(
            404,
            f"this model transcribes and translates nothing: send recordings to {_TRANSCRIPTIONS}",
        )


async def _transcribe(service: TranscriptionService, request: Request) -> Response:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "send the recording as multipart/form-data, in a field named 'file'")
    client = request.client.host if request.client else "local"
    with contextlib.ExitStack() as held:
        held.enter_context(service.slot(client))
        form = await _form(request)
        for value in form.values():
            if isinstance(value, UploadFile):
                held.callback(value.file.close)
        wanted = read_fields(form, service)
        gone = threading.Event()

        async def look() -> None:
            if await request.is_disconnected():
                gone.set()

        try:
            await service.turn(service.uploads, held, gone, look)
            loop = asyncio.get_running_loop()
            events: asyncio.Queue[tuple[int, str, float] | None] = asyncio.Queue()
            begun = asyncio.Event()

            def tell(call: Callable[..., None], *args: object) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                    loop.call_soon_threadsafe(call, *args)

            def on_text(number: int, text: str, until: float) -> None:
                tell(events.put_nowait, (number, text, until))

            def recognize() -> Recognition:
                recognizer = service.choose(wanted.phrases, wanted.language)
                limit = service.limits.seconds
                with open_audio(wanted.file.file, max_seconds=limit, name=wanted.name) as audio:
                    tell(begun.set)
                    return service.recognize(
                        audio, recognizer, on_text=on_text if wanted.stream else None, gone=gone
                    )

            work = service.start(held, recognize)
            if wanted.stream:
                work.add_done_callback(lambda _: events.put_nowait(None))
                beginning = asyncio.ensure_future(begun.wait())
                either: set[asyncio.Future[Any]] = {work, beginning}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if beginning.cancel() and work.done():
                    await work  # what is wrong with the audio has a status of its own
                return _EventStream(_sse(service, wanted, work, events), gone)
            recognition = await watch(work, look=look)
        except BaseException:
            gone.set()
            raise
    notes = wanted.notes + recognition.warnings
    language = _language(service, wanted, recognition)
    body = render(recognition, wanted.form, model=service.model, language=language, notes=notes)
    headers = {"Content-Type": FORMATS[wanted.form], "Prunella-Model": service.model}
    if notes:  # for the formats that have no place for them
        headers["Prunella-Warning"] = "; ".join(notes).encode("unicode_escape").decode()[:_HEADER]
    return Response(body, headers=headers)


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=64, max_part_size=_FIELD_BYTES)
    except (ValueError, KeyError, UnicodeError) as error:  # what malformed headers of a part end in
        raise HTTPException(400, f"the form cannot be read ({error}): send it again") from error


class _EventStream(StreamingResponse):
    """Ends the work however the response ends; its thread gives the slot back when it is done."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], gone: threading.Event) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store"})
        self._gone = gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._gone.set()


async def _sse(
    service: TranscriptionService,
    wanted: Asked,
    work: asyncio.Future[Recognition],
    events: asyncio.Queue[tuple[int, str, float] | None],
) -> AsyncIterator[str]:
    """OpenAI's events: deltas that only append, then the whole text, which is the one that counts.

    Beside OpenAI's keys a delta says how many seconds of the recording it reaches to, and the end has the cues of subtitles.
    """
    sent: dict[int, str] = {}
    while (event := await events.get()) is not None:
        number, text, until = event
        before = sent.get(number, "")
        if text.startswith(before) and len(text) > len(before):
            gap = " " if not before and sent else ""
            sent[number] = text
            delta = {"type": "transcript.text.delta", "delta": gap + text[len(before) :]}
            yield _event(delta | {"seconds": round(until, 3)})
    try:
        recognition = await work
    except PrunellaError as error:
        yield _event({"type": "error", "error": {"message": str(error), "type": "server_error"}})
        return
    notes = wanted.notes + recognition.warnings
    language = _language(service, wanted, recognition)
    body = summary(recognition, model=service.model, language=language, notes=notes)
    cues = subtitles(recognition)
    yield _event({"type": "transcript.text.done", **body, "cues": cues})


def _language(service: TranscriptionService, wanted: Asked, recognition: Recognition) -> str:
    """What is spoken: as the model named it, else as it was told; "": nobody knows."""
    told = service.language if wanted.language is None else wanted.language
    return recognition.language or told


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _model(service: TranscriptionService) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": 0,
        "owned_by": "prunella",
        "language": service.language,
        "languages": [{"code": one.code, "name": one.name} for one in service.languages],
        "facts": service.facts.to_json(),
        "limits": {"upload_bytes": service.limits.upload_bytes, "seconds": service.limits.seconds},
    }


def _http_problem(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    headers = dict(getattr(error, "headers", None) or {})
    message = str(getattr(error, "detail", error))
    path = request.url.path[:100]
    if message == "Not Found":
        rest = path.removeprefix("/v1").removeprefix("/")
        advice = "set the base URL to this server's address and /v1"
        if rest.partition("/")[0] not in ("audio", "models", "v1"):
            advice = f"recordings go to POST {_TRANSCRIPTIONS}"
        message = f"there is nothing at {path}: {advice}"
    elif message == "Method Not Allowed":
        allowed = sorted(set(headers.get("Allow", "").split(", ")) - {"HEAD"})
        message = f"{path} takes no {request.method[:20]}: send {' or '.join(allowed)}"
    return problem(status, message, headers=headers)


def _busy(_: Request, error: Exception) -> Response:
    status = 429 if getattr(error, "of_client", False) else 503
    return problem(status, str(error), code="busy", headers={"Retry-After": "1"})


def _status(status: int, code: str | None = None) -> Callable[[Request, Exception], Response]:
    def handler(_: Request, error: Exception) -> Response:
        return problem(status, " ".join(str(error).split()), code=code)

    return handler


def _no_room(_: Request, error: Exception) -> Response:
    if getattr(error, "errno", None) not in _FULL:
        raise error
    return problem(507, "the server has no room for this recording now: send it later, or a shorter one")
