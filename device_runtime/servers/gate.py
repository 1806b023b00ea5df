"""Who may talk to the server, and how much they may send: checked before any handler runs."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def problem(
    status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return Response(
        json.dumps(body, ensure_ascii=False), status, headers=headers, media_type="application/json"
    )


@dataclass(frozen=True)
class Access:
    """Who is let in.

    A browser that shows a foreign page must not reach a server on this machine: not through a name that was pointed at
    127.0.0.1 (the Host is checked: addresses and this machine's own names pass, others must be listed), and not from
    another origin (the Origin is checked, for a WebSocket too, which no same-origin rule of the browser protects).
    """

    api_key: str | None = None
    hosts: tuple[str, ...] = ()  # names beside this machine's
    origins: tuple[str, ...] = ()  # foreign pages that may call, for example "https://home.example"

    def host_allowed(self, host: str) -> bool:
        """Whether a `Host` header names this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
        except ValueError:
            return False
        if name in own_names() or name in {host.lower() for host in self.hosts}:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def origin_allowed(self, origin: str | None, host: str) -> bool:
        """Whether a page of this origin may call; programs that are no browser send none."""
        if origin is None or origin.lower() in {allowed.lower().rstrip("/") for allowed in self.origins}:
            return True
        try:
            return urlsplit(origin).netloc.lower() == host.lower() != ""
        except ValueError:
            return False

    def key_allowed(self, key: str | None) -> bool:
        return self.api_key is None or hmac.compare_digest((key or "").encode(), self.api_key.encode())


def own_names() -> set[str]:
    """Names by which a browser on this machine, or in its network, reaches it."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return {"localhost", name, short, f"{short}.local"}


def bearer(headers: Headers) -> str | None:
    """The key of an `Authorization: Bearer KEY` header."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


class Gate:
    """ASGI middleware: Host, Origin, API key of `/v1/`, size and pace of what is uploaded.

    A live socket brings its key in its first message, where a browser cannot set headers.
    """

    def __init__(self, app: ASGIApp, access: Access, upload_bytes: int, idle_seconds: float) -> None:
        self._app = app
        self._access = access
        self._upload_bytes = upload_bytes
        self._idle = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            if refusal:
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
            else:
                await self._app(scope, receive, send)
            return
        if refusal:
            await refusal(scope, receive, send)
            return
        await self._app(scope, self._bounded(receive), send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        access = self._access
        host = headers.get("host", "")
        if not access.host_allowed(host):
            return problem(
                421,
                f"this server is not known as '{host[:100]}': use its address, or start it with --allow-host",
            )
        if not access.origin_allowed(headers.get("origin"), host):
            return problem(
                403, "a page of another origin may not use this server: start it with --allow-origin"
            )
        if scope["type"] == "websocket":
            return None
        if scope["path"].startswith("/v1/") and not access.key_allowed(bearer(headers)):
            return problem(
                401,
                "a valid API key is missing: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return problem(400, "the Content-Length is not a number: send the upload again")
        if int(length) > self._upload_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> Response:
        return problem(413, self._too_large_text())

    def _too_large_text(self) -> str:
        return f"the upload is larger than {self._upload_bytes} bytes: send a shorter or compressed recording"

    def _bounded(self, receive: Receive) -> Receive:
        received = 0
        complete = False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is the end of the connection, however late
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._idle)
            except (TimeoutError, asyncio.TimeoutError) as error:  # two classes before Python 3.11
                raise HTTPException(408, "the upload stalled: send it again") from error
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._upload_bytes:
                raise HTTPException(413, self._too_large_text())
            return message

        return bounded


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Names in order, each once, without empty ones."""
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
