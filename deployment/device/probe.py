"""Ask a running server for a transcript, and its Wyoming port who it is: a round trip, not an open port.

Of the standard library alone: it also runs in containers and before the runtime is installed.

    python3 probe.py --env etc/serve.env --clip clip.flac --expect "go forward"
    python3 probe.py --wyoming 127.0.0.1:10300
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HTTP_PORT, WYOMING_PORT = 8_000, 10_300
# Settings with which a server rightly says something else than the bundle alone: the probe then asks for an answer, not for a text.
CHANGES_TEXT = ("PHRASES", "LANGUAGE", "VOCABULARY", "BEAMS", "ENGINE", "MIN_SCORE")
_NO = ("", "0", "false", "no", "off")
_ANYWHERE = ("0.0.0.0", "::", "")  # noqa: S104  (recognized here, not listened at)
_MOST = 1 << 20  # bytes of an answer


class ProbeError(Exception):
    """The server is not there, or does not answer as it should. The message says which."""


@dataclass(frozen=True)
class Address:
    """Where a server listens, as its environment says.

    Attributes:
        host: of this machine.
        port: of HTTP.
        wyoming: port of Wyoming, or None.
        tls: whether HTTP is HTTPS.
        key: asked of requests; "": none.
        exact: whether nothing in the environment changes what is heard.
    """

    host: str = "127.0.0.1"
    port: int = HTTP_PORT
    wyoming: int | None = None
    tls: bool = False
    key: str = ""
    exact: bool = True

    @staticmethod
    def of(environ: Mapping[str, str]) -> Address:
        """Read from `PRUNELLA_...`, with `..._FILE` for what stands in a file."""

        def value(name: str) -> str:
            direct = environ.get(f"PRUNELLA_{name}")
            file = environ.get(f"PRUNELLA_{name}_FILE")
            return direct if direct is not None else Path(file).read_text().strip() if file else ""

        host, wyoming = value("HOST"), value("WYOMING")
        yes = wyoming.lower() not in _NO
        return Address(
            host="127.0.0.1" if host in _ANYWHERE else host,
            port=int(value("PORT") or HTTP_PORT),
            wyoming=(int(wyoming) if wyoming.isdigit() and wyoming != "1" else WYOMING_PORT) if yes else None,
            tls=value("TLS").lower() not in _NO or bool(value("CERTIFICATE")),
            key=value("API_KEY"),
            exact=not any(value(name) for name in CHANGES_TEXT),
        )


def read_environment(path: Path) -> dict[str, str]:
    """`NAME=VALUE` lines, as systemd's EnvironmentFile has them; a file that is not there is empty."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            found[name.strip()] = value.strip().strip("\"'")
    return found


def transcribe(address: Address, clip: Path, timeout: float) -> str:
    """The text that the server hears in a clip.

    Raises:
        ProbeError: it is not there, or answers with an error.
    """
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{clip.name}"\r\n\r\n'
    body = head.encode() + clip.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if address.key:
        headers["Authorization"] = f"Bearer {address.key}"
    connection: http.client.HTTPConnection
    if address.tls:  # this machine's own, self-signed
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(address.host, address.port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout)
    try:
        connection.request("POST", "/v1/audio/transcriptions", body, headers)
        answer = connection.getresponse()
        said = answer.read(_MOST)
        if answer.status != 200:
            raise ProbeError(f"the server answers {answer.status}: {said[:200].decode('utf-8', 'replace')}")
        return str(json.loads(said)["text"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise ProbeError(f"no transcript from {address.host}:{address.port} ({error!r})") from error
    finally:
        connection.close()


def describe(host: str, port: int, timeout: float) -> list[str]:
    """Names of the models that a Wyoming server offers: its answer to `describe`.

    Raises:
        ProbeError: it is not there, or does not answer with its info.
    """
    try:
        with socket.create_connection((host, port), timeout) as connection:
            connection.sendall(b'{"type": "describe", "data": {}}\n')
            with connection.makefile("rb") as stream:
                header = json.loads(stream.readline(_MOST))
                data = header.get("data") or {}
                if header.get("data_length"):
                    data = {**data, **json.loads(stream.read(min(_MOST, header["data_length"])))}
        names = [model["name"] for program in data.get("asr", ()) for model in program["models"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProbeError(f"Wyoming at {host}:{port} does not answer ({error!r})") from error
    if header.get("type") != "info" or not names:
        raise ProbeError(f"Wyoming at {host}:{port} answers without a model")
    return names


def until_up(address: Address, seconds: float) -> None:
    """Wait until something listens.

    Raises:
        ProbeError: nothing does in time.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address.host, address.port), 2).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ProbeError(
                    f"nothing listens at {address.host}:{address.port} after {seconds:.0f} s"
                ) from error
            time.sleep(0.2)


def check(
    address: Address, clip: Path | None, expected: tuple[str, ...], *, wait: float, timeout: float
) -> str:
    """What the server hears, after it was found to be right; "" where no clip is given.

    Raises:
        ProbeError: it is not up in time, hears something else, or has no Wyoming where its settings say so.
    """
    until_up(address, wait)
    heard = ""
    if clip is not None:
        heard = transcribe(address, clip, timeout)
        if address.exact and expected and heard not in expected:
            raise ProbeError(f"the server heard {heard!r}, expected {' or '.join(map(repr, expected))}")
    if address.wyoming is not None:
        describe(address.host, address.wyoming, timeout)
    return heard


def main(argv: list[str] | None = None) -> int:
    """0: it answers; 1: it does not, and stderr says why."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", type=Path, help="the server's settings (default: the environment)")
    parser.add_argument("--clip", type=Path, help="a recording to transcribe")
    parser.add_argument("--expect", action="append", default=[], help="its text (repeatable: one of them)")
    parser.add_argument("--wyoming", metavar="HOST:PORT", help="ask this port alone")
    parser.add_argument("--wait", type=float, default=0, help="seconds until the server must be up")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for an answer")
    args = parser.parse_args(argv)
    try:
        if args.wyoming:
            host, _, port = args.wyoming.rpartition(":")
            said = ", ".join(describe(host, int(port), args.timeout))
        else:
            environ = os.environ if args.env is None else read_environment(args.env)
            expected = tuple(args.expect)
            said = check(Address.of(environ), args.clip, expected, wait=args.wait, timeout=args.timeout)
    except (ProbeError, OSError, ValueError) as error:
        sys.stderr.write(f"prunella: {error}\n")
        return 1
    sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
