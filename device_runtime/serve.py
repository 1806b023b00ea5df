"""A speech-to-text server: OpenAI's transcription endpoint, a page with a microphone, and Wyoming for Home Assistant.

It listens to this machine alone unless --host says otherwise. `GET /` is the page; a program sends recordings to
`POST /v1/audio/transcriptions`, as OpenAI's clients do; live audio goes to the WebSocket `/v1/live`. Browsers give the
microphone only to localhost or to HTTPS: for a phone use --host 0.0.0.0 --tls --api-key KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from prunella.device_runtime.base.cache import writable_cache
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.extras import explained
from prunella.device_runtime.base.service_manager import READY, STOPPING, Watchdog, notify
from prunella.device_runtime.bundle import open_bundle
from prunella.device_runtime.decoding.limits import check_beams
from prunella.device_runtime.decoding.phrase_grammar import parse_phrases
from prunella.device_runtime.live.decode_worker import Recognizer
from prunella.device_runtime.options import (
    BEAMS_HELP,
    LIVE_BEAMS_HELP,
    add_bundle,
    add_runtime_options,
    open_from,
)
from prunella.device_runtime.servers.addresses import is_loopback, is_unspecified, listen_at, urls
from prunella.device_runtime.servers.connections import Connections, CountedListener
from prunella.device_runtime.servers.model_summary import ModelSummary
from prunella.device_runtime.servers.service import Limits, TranscriptionService
from prunella.device_runtime.transcriber import Transcriber

WYOMING_PORT = 10_300
ENGLISH = "en"  # what a bundle transcribes that has no languages to choose from and says nothing else


def phrases_of_requests(transcriber: Transcriber, min_score: float) -> Callable[[str], Recognizer]:
    """What gives a request or a live session that brings phrases of its own a recognizer that is held to them."""
    return lambda text: transcriber.with_phrases(parse_phrases(text, name="phrases"), min_score=min_score)


async def serve(
    app: Any,
    service: TranscriptionService,
    *,
    host: str = "127.0.0.1",
    port: int = 8_000,
    wyoming_port: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; requests that are being worked on are then finished, up to 10 s.

    Args:
        app: from `create_app`.
        service: the one behind it.
        host: address to listen at.
        port: of HTTP.
        wyoming_port: of Wyoming, at the same address; None for no Wyoming.
        tls: for HTTPS, from `tls.server_context`.

    Raises:
        UsageError: the host is none of this machine's.
        PrunellaError: a port cannot be listened at.
    """
    from prunella.device_runtime.servers.http_server import HttpServer

    connections = Connections(service.limits.connections, service.limits.idle_seconds)
    server = HttpServer(app, service, connections, tls)
    listener = CountedListener.of(listen_at(host, port), connections)
    sweeper = asyncio.create_task(_sweep(connections))
    try:
        async with _wyoming(service, host, wyoming_port):
            first, *others = urls(listener, host, "https" if tls else "http")
            also = f" (also {', '.join(others[:3])})" if others else ""
            _tell(f"{service.model} at {first}{also}; Ctrl-C ends it")
            notify(READY, f"STATUS={service.model} at {first}")
            await server.serve(sockets=[listener])
    finally:
        notify(STOPPING)
        sweeper.cancel()
        listener.close()


async def _sweep(connections: Connections) -> None:
    watchdog = Watchdog()
    while True:
        await asyncio.sleep(1)
        connections.sweep()
        watchdog.alive()  # from the loop that answers: one that hangs gives no sign


@contextlib.asynccontextmanager
async def _wyoming(service: TranscriptionService, host: str, port: int | None) -> AsyncIterator[None]:
    if port is None:
        yield
        return
    from prunella.device_runtime.servers.wyoming_server import start_wyoming

    server = await start_wyoming(service, host, port)
    _tell(f"Wyoming at tcp://{host}:{server.port}")
    try:
        yield
    finally:
        await server.stop()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8_000, help="of HTTP (default: %(default)s)")
    parser.add_argument(
        "--wyoming",
        nargs="?",
        type=int,
        const=WYOMING_PORT,
        metavar="PORT",
        help=f"serve Home Assistant too, at this port (default: {WYOMING_PORT})",
    )
    _add_access_options(parser.add_argument_group("who may come in"))
    _add_limits(parser.add_argument_group("how much is taken"))
    add_runtime_options(
        parser,
        beams_help=f"in recordings, {BEAMS_HELP}",
        language_help="that is spoken in requests that name none, where the model takes a language (default: it finds out); "
        f"of other models what they transcribe, as clients are told (default: {ENGLISH})",
    )
    parser.add_argument(
        "--live-beams", type=int, default=0, metavar="N", help=f"of a microphone, {LIVE_BEAMS_HELP}"
    )


def _add_access_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--api-key", metavar="KEY", help="asked of every request (or set PRUNELLA_API_KEY); not of Wyoming"
    )
    group.add_argument(
        "--tls",
        action="store_true",
        help="HTTPS, with a self-signed certificate unless --certificate is given",
    )
    group.add_argument("--certificate", metavar="PEM", help="your own certificate chain, with --key")
    group.add_argument("--key", metavar="PEM", help="and its private key")
    group.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="another name of this server (repeatable)",
    )
    group.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="a foreign page that may use it, as https://home.example (repeatable)",
    )
    group.add_argument(
        "--trusted-proxy",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="a reverse proxy before this server, or its network: its X-Forwarded-For tells clients apart "
        "(repeatable; default: nobody's is believed, and all behind a proxy are one client)",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    limits = Limits()
    group.add_argument(
        "--max-upload-mb", type=float, default=limits.upload_bytes / 1e6, help="(default: %(default)g)"
    )
    group.add_argument(
        "--max-seconds", type=float, default=limits.seconds, help="of a recording (default: %(default)g)"
    )
    group.add_argument(
        "--max-requests",
        type=int,
        default=limits.requests,
        help="at once; more get 503 (default: %(default)s)",
    )
    group.add_argument(
        "--max-per-client",
        type=int,
        default=limits.requests_per_client,
        help="of one address at once; more get 429 (default: %(default)s)",
    )
    group.add_argument(
        "--max-live", type=int, default=limits.live, help="live sessions at once (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    limits = _limits(args)
    from prunella.device_runtime.servers.access import Access, unique
    from prunella.device_runtime.servers.clients import Proxies
    from prunella.device_runtime.servers.http_api import create_app

    key = os.environ.get("PRUNELLA_API_KEY") if args.api_key is None else args.api_key
    access = Access(key, unique(args.allow_host), unique(args.allow_origin))
    proxies = Proxies.of(args.trusted_proxy)
    if key is not None and args.wyoming is not None:
        _tell(
            f"Wyoming knows no keys: whoever reaches {args.host}:{args.wyoming} may use this server without one"
        )
    _check_places(args)
    tls = _tls(args)
    check_beams(args.live_beams)
    transcriber = open_from(args, any_language=True)
    languages = transcriber.prompt.languages
    live = transcriber.with_options(beams=args.live_beams)
    service = TranscriptionService(
        recordings=transcriber.with_options(beams=args.beams),
        live=live,
        partials=transcriber.with_options(beams=1),
        model=Path(args.bundle).resolve().name,
        language=transcriber.prompt.language if languages else args.language or ENGLISH,
        languages=languages,
        limits=limits,
        with_phrases=phrases_of_requests(transcriber, args.min_score),
        with_language=_told if languages else None,
        facts=_facts(args.bundle, args.phrases),
    )
    live.warm_up()
    if key is None and not is_loopback(args.host):
        _tell(f"whoever reaches {args.host} may use this server: --api-key keeps others out")
    if tls is None and not is_loopback(args.host):
        _tell("browsers give an http page of another machine no microphone, only files: --tls does")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            serve(
                create_app(service, access, proxies),
                service,
                host=args.host,
                port=args.port,
                wyoming_port=args.wyoming,
                tls=tls,
            )
        )
    return 0


def _told(recognizer: Recognizer, language: str) -> Recognizer:
    assert isinstance(recognizer, Transcriber)
    return recognizer.with_language(language)


def _facts(bundle: str, phrases: str | None) -> ModelSummary:
    text = ""
    if phrases is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):  # it was read before; a pipe is now empty
            text = Path(phrases).read_text(encoding="utf-8-sig")
    return ModelSummary.of(open_bundle(bundle, verify=False).manifest, text)


def _limits(args: argparse.Namespace) -> Limits:
    limits = Limits(
        upload_bytes=int(args.max_upload_mb * 1e6),
        seconds=args.max_seconds,
        requests=args.max_requests,
        requests_per_client=args.max_per_client,
        live=args.max_live,
    )
    for name, value in vars(limits).items():
        if not value > 0:
            raise UsageError(f"the limit of {name.replace('_', ' ')} is {value}: give a number above 0")
    for port in (args.port, args.wyoming):
        if port is not None and not 0 <= port < 65_536:
            raise UsageError(f"there is no port {port}: give one from 1 to 65535, or 0 for any that is free")
    return limits


def _check_places(args: argparse.Namespace) -> None:
    """Before the model is loaded: addresses that cannot be listened at, and no place for uploads."""
    for port, option in ((args.port, "--port"), (args.wyoming, "--wyoming PORT")):
        if port is not None:
            listen_at(args.host, port, option).close()
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise UsageError(
            "no folder for temporary files can be written, and recordings wait in one: set TMPDIR to a folder that can, "
            "or mount one at /tmp"
        ) from error


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    if bool(args.certificate) != bool(args.key):
        raise UsageError(
            "--certificate and --key belong together: give both, or --tls alone for a self-signed one"
        )
    if not (args.tls or args.certificate):
        return None
    try:
        from prunella.device_runtime.servers.tls import self_signed, server_context
    except ModuleNotFoundError as error:
        raise explained(error, "TLS") from error
    if args.certificate:
        return server_context(args.certificate, args.key)
    names = (*(() if is_unspecified(args.host) else (args.host,)), *args.allow_host)
    with contextlib.ExitStack() as for_now:
        try:
            folder = writable_cache("tls", mode=0o700)
        except UsageError as error:
            _tell(f"{error}, or give --certificate and --key; until then browsers warn at each start")
            folder = Path(for_now.enter_context(tempfile.TemporaryDirectory(prefix="prunella-")))
            kept = "that is not kept"
        else:
            kept = str(folder / "certificate.pem")
        _, key, fingerprint = self_signed(folder, names)
        _tell(f"self-signed certificate {kept}, SHA-256 {fingerprint}; browsers warn once")
        return server_context(key, key)


def _tell(line: str) -> None:
    sys.stderr.write(f"prunella: {line}\n")
    sys.stderr.flush()
