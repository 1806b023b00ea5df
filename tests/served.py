"""A server as a process: ports for it, and the time from when it says that it is there to its end."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator


def free_ports(count: int) -> list[int]:
    """Of this machine; nobody else should take them in between."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@contextlib.contextmanager
def there(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Wait until a `prunella serve` says on its stderr how to stop it; it is killed in the end."""
    told = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            told.append(line)
            if "Ctrl-C" in line:
                break
        else:
            raise AssertionError("".join(told))
        yield process
    finally:
        process.kill()
        process.communicate()
