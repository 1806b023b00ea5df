"""The page at `/` and the files that it is made of, each under its own name; nothing in it comes from elsewhere."""

from __future__ import annotations

import hashlib
import importlib.resources
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Nothing may run in the page but its own files, and it may talk to nobody but this server.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; media-src blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
FILES = {
    "page.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "recordings.js": "text/javascript; charset=utf-8",
    "languages.js": "text/javascript; charset=utf-8",
    "microphone.js": "text/javascript; charset=utf-8",
    "mark.svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """One of the page's files, kept in memory."""

    content: bytes
    media_type: str

    @staticmethod
    def read(name: str) -> PageFile:
        """`name`: one of `FILES`."""
        folder = importlib.resources.files(__package__).joinpath("page")
        return PageFile(folder.joinpath(name).read_bytes(), FILES[name])

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    async def answer(self, request: Request) -> Response:
        """The file, or 304 where the browser has it: asked each time, so that no page meets another version's script."""
        headers = {
            "Cache-Control": "no-cache",
            "Content-Security-Policy": CONTENT_POLICY,
            "ETag": self.etag,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        known = request.headers.get("if-none-match", "")
        if self.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def page_routes() -> list[Route]:
    """`/` is the page; what it loads lies beside it, so that it also works below a proxy's path."""
    paths = {"page.html": "/"}
    return [Route(paths.get(name, f"/{name}"), PageFile.read(name).answer, name=name) for name in FILES]
