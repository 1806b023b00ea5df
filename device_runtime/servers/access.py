"""Who may talk to the server, and how much they may send: checked before any handler runs."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.servers.addresses import ascii_name
from prunella.device_runtime.servers.clients import Proxies

_CORS_METHODS = "GET, POST, OPTIONS"
_CORS_HEADERS = ("Authorization", "Content-Type")
_CORS_SECONDS = 600  # for which a browser need not ask again
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


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

    Raises:
        UsageError: a key that no client can send, or a host or an origin that no browser would ever name.
    """

    api_key: str | None = None
    hosts: tuple[str, ...] = ()  # names beside this machine's
    origins: tuple[str, ...] = ()  # foreign pages that may call, for example "https://home.example"

    def __post_init__(self) -> None:
        if self.api_key is not None:
            _check_key(self.api_key)
        for host in self.hosts:
            if re.search(r"[/\\@\s*]|:\d*$", host) and not _is_address(host):
                raise UsageError(
                    f"'{host}' is no name of a host: give it as prunella.home, without http and port"
                )
        for origin in self.origins:
            if origin != "null" and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\\@\s*?#]+/?", origin):
                raise UsageError(
                    f"'{origin}' is no origin: give scheme, host and port, as https://home.example"
                )

    def host_allowed(self, host: str) -> bool:
        """Whether a `Host` header names this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
        except ValueError:
            return False
        if name in own_names() or name in {ascii_name(host) for host in self.hosts}:
            return True
        return _is_address(name)

    def origin_allowed(self, origin: str | None, host: str) -> bool:
        """Whether a page of this origin may call; programs that are no browser send none."""
        if origin is None or self.origin_listed(origin):
            return True
        try:
            return urlsplit(origin).netloc.lower() == host.lower() != ""
        except ValueError:
            return False

    def origin_listed(self, origin: str) -> bool:
        """Whether it is one of the foreign pages that may call."""
        return _plain_origin(origin) in {_plain_origin(allowed) for allowed in self.origins}

    def key_allowed(self, key: str | bytes | None) -> bool:
        """Whether a key is the server's; `bytes` are those of a header, which clients write in UTF-8 or in Latin-1."""
        if self.api_key is None:
            return True
        given = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key or b""
        spellings = [
            self.api_key.encode("utf-8", "surrogateescape")
        ]  # an argument's own bytes, whatever they are
        if isinstance(key, bytes):
            with contextlib.suppress(UnicodeEncodeError):
                spellings.append(self.api_key.encode("latin-1"))
        return any(hmac.compare_digest(given, spelling) for spelling in spellings)


def _check_key(key: str) -> None:
    try:
        key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError("the API key holds half a character: choose another one") from error
    if not key.strip():
        raise UsageError("the API key is empty: choose one, or leave it out to serve without a key")
    if key != key.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
        raise UsageError(
            "the API key begins or ends with a space or holds a control character, which no client can send: "
            "choose another one"
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _plain_origin(origin: str) -> str:
    """As browsers write it: lower case, names in ASCII, without the scheme's own port."""
    scheme, slashes, rest = origin.lower().rstrip("/").partition("://")
    name, colon, port = rest.partition(":")
    plain = f"{scheme}{slashes}{ascii_name(name)}{colon}{port}"
    return plain.removesuffix(_DEFAULT_PORTS.get(plain.partition(":")[0], "/"))


def own_names() -> set[str]:
    """Names by which a browser on this machine, or in its network, reaches it."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return {"localhost", name, short, f"{short}.local"}


def bearer(headers: Headers) -> bytes | None:
    """The key of an `Authorization: Bearer KEY` header, in the bytes that came."""
    scheme, _, key = headers.get("authorization", "").encode("latin-1").partition(b" ")
    return key.strip(b" \t") if scheme.lower() == b"bearer" else None


class AccessMiddleware:
    """ASGI middleware: Host, Origin, API key of `/v1/`, size and pace of what is uploaded, and the CORS headers without
    which a browser keeps an answer from a foreign page.

    A live socket brings its key in its first message, where a browser cannot set headers.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        upload_bytes: int,
        idle_seconds: float,
        upload_seconds: float = 600.0,
    ) -> None:
        self._app = app
        self._access = access
        self._upload_bytes = upload_bytes
        self._idle = idle_seconds
        self._in_all = upload_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if scope["type"] == "http" and self._access.origins:
            send = _with_cors(send, origin if origin and self._access.origin_listed(origin) else None)
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
        if _is_preflight(scope, headers) and access.origin_listed(headers["origin"]):
            return _preflight(headers)
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
        until = asyncio.get_running_loop().time() + self._in_all

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is the end of the connection, however late
                return await receive()
            try:
                left = until - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(receive(), min(self._idle, left))
            except (TimeoutError, asyncio.TimeoutError) as error:  # two classes before Python 3.11
                raise HTTPException(408, "the upload stalled, or took too long: send it again") from error
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._upload_bytes:
                raise HTTPException(413, self._too_large_text())
            return message

        return bounded


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
    return asks and "origin" in headers


def _preflight(headers: Headers) -> Response:
    """What a browser asks before it sends a foreign page's request: without a key, which it does not know."""
    asked = (name.strip() for name in headers.get("access-control-request-headers", "").split(","))
    known = {name.lower() for name in _CORS_HEADERS}
    more = [name for name in asked if _HEADER_NAME.fullmatch(name) and name.lower() not in known]
    allowed = {
        "Access-Control-Allow-Methods": _CORS_METHODS,
        "Access-Control-Allow-Headers": ", ".join((*_CORS_HEADERS, *more[:32])),
        "Access-Control-Max-Age": str(_CORS_SECONDS),
    }
    if headers.get("access-control-request-private-network") == "true":
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=allowed)


def _with_cors(send: Send, origin: str | None) -> Send:
    """Adds the headers to every answer: those of errors and streams too."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.add_vary_header("Origin")
            if origin is not None:
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = "Prunella-Model, Prunella-Warning, Retry-After"
        await send(message)

    return marked


class KnownClients:
    """ASGI middleware: `scope["client"]` is the client's own address from here on, wherever a proxy is trusted."""

    def __init__(self, app: ASGIApp, proxies: Proxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope.get("client"):
            forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for"))
            scope["client"] = (self._proxies.client(scope["client"][0], forwarded), 0)
        await self._app(scope, receive, send)


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Names in order, each once, without empty ones."""
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
