"""The HTTP server under the application: bounded protocols, and an end at which what was said still gets its text."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from typing import Any

import uvicorn

from prunella.device_runtime.servers.connections import Connections
from prunella.device_runtime.servers.protocols import HEADER_BYTES, bounded_protocols
from prunella.device_runtime.servers.service import TranscriptionService

_BACKLOG = 128  # connections that wait to be accepted
_GRACE = 10  # seconds that requests have to end in when the server is stopped


class HttpServer(uvicorn.Server):
    """Serves an application at sockets until SIGINT or SIGTERM; what is being worked on is finished first, up to 10 s.

    Args:
        app: from `create_app`.
        service: the one behind it.
        connections: those of this port.
        tls: for HTTPS.
    """

    def __init__(
        self, app: Any, service: TranscriptionService, connections: Connections, tls: ssl.SSLContext | None
    ) -> None:
        http, ws = bounded_protocols(connections, unheard=2 * service.limits.live)
        config = uvicorn.Config(
            app,
            http=http,
            ws=ws,
            ws_max_size=1 << 20,
            ws_per_message_deflate=False,  # a few bytes could become many before they are counted
            lifespan="off",
            server_header=False,
            proxy_headers=False,  # whom it would trust by itself is on this machine: any program (see `clients.py`)
            access_log=False,
            log_level="warning",
            h11_max_incomplete_event_size=HEADER_BYTES,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_GRACE,
        )
        config.load()
        config.ssl = tls
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._service.closing = True
        hurry = threading.Timer(_GRACE - 3, self._service.stop.set)  # who still waits then gets a 503
        hurry.daemon = True
        hurry.start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: Any = None) -> None:
        # Before uvicorn cuts the live sockets: what was said into them gets its text.
        until = time.monotonic() + _GRACE - 3
        while self._service.live_sessions and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)
