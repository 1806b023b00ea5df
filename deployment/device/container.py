"""The start of a container: settings of Home Assistant's page become the environment, and it is told that we are there.

Of the standard library alone. Elsewhere than in Home Assistant it only starts `prunella`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import urllib.request
from pathlib import Path

OPTIONS = Path("/data/options.json")
_SUPERVISOR = "http://supervisor/discovery"
_WAIT = 600.0  # seconds for the server to be up
_LAUNCHER = Path(__file__).parents[1] / "bin" / "prunella"


def variables(options: Path) -> dict[str, str]:
    """The app's options as the server's variables."""
    try:
        chosen = json.loads(options.read_text())
    except (OSError, ValueError):
        return {}
    return {
        f"PRUNELLA_{name.upper()}": str(value) for name, value in chosen.items() if value not in (None, "")
    }


def announce(token: str, port: int) -> None:
    """Tell Home Assistant's supervisor where Wyoming is, once it answers."""
    sys.path.insert(0, str(Path(__file__).parent))
    import probe

    until = time.monotonic() + _WAIT
    while time.monotonic() < until:
        with contextlib.suppress(probe.ProbeError):
            probe.describe("127.0.0.1", port, 10)
            break
        time.sleep(1)
    body = {"service": "wyoming", "config": {"uri": f"tcp://{socket.gethostname()}:{port}"}}
    request = urllib.request.Request(
        _SUPERVISOR,
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
    except OSError as error:
        sys.stderr.write(f"prunella: Home Assistant was not told ({error}): add Wyoming by hand\n")


def main() -> None:
    """Become the server; a child tells Home Assistant."""
    os.environ.update(variables(OPTIONS))
    token = os.environ.pop("SUPERVISOR_TOKEN", "")
    if token and not os.fork():
        announce(token, int(os.environ.get("PRUNELLA_WYOMING") or 10_300))
        os._exit(0)
    os.execv(_LAUNCHER, [str(_LAUNCHER), *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
