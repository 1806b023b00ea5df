"""A device over the system's own ssh and sftp: commands, and a copy that goes on where it broke off. Nothing is needed there."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prunella.device_runtime.base.errors import PrunellaError, UsageError

_BROKEN = 255  # ssh's own exit code: of the connection, not of the command
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4")


class ConnectionLostError(PrunellaError):
    """The connection broke or was refused; what it was for can be tried again."""


class RemoteError(PrunellaError):
    """A command on the device failed. The message is what it said."""


@dataclass(frozen=True)
class Host:
    """One device.

    Attributes:
        name: `user@host`, as ssh takes it.
        port: None for ssh's own.
        options: further ones, as `ssh -o` takes them.
        config: a configuration in place of the user's.
        sudo: whether commands that change the device go through `sudo -n`.
        shared: socket of a connection that all commands share, see `connected`.
    """

    name: str
    port: int | None = None
    options: tuple[str, ...] = field(default_factory=tuple)
    config: Path | None = None
    sudo: bool = False
    shared: Path | None = None

    @contextlib.contextmanager
    def connected(self) -> Iterator[Host]:
        """The same host, whose commands share one connection: a small board takes a second for each handshake."""
        with tempfile.TemporaryDirectory(prefix="prunella-", ignore_cleanup_errors=True) as folder:
            one = replace(self, shared=Path(folder) / "s")
            try:
                yield one
            finally:
                subprocess.run([*one._ssh(), "-O", "exit", one.name], capture_output=True)  # noqa: SLF001

    def run(self, script: str, *words: str, root: bool = False, timeout: float = 120) -> str:
        """Run a POSIX shell script with arguments there → its stdout.

        Raises:
            RemoteError: it failed; with the last line of its stderr.
            ConnectionLostError: the connection did.
        """
        try:
            done = subprocess.run(
                self._command(words, root=root), input=script, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise ConnectionLostError(f"{self.name} did not answer in {timeout:.0f} s: try again") from error
        self._check(done.returncode, done.stderr)
        return done.stdout

    def attached(self, command: Sequence[str], tell: Callable[[str], None], *, root: bool = False) -> None:
        """Run a command there that sees when this process goes away: its stdin then ends. Its lines are told as they come.

        Raises:
            RemoteError, ConnectionLostError: as `run`.
        """
        words = [*(("sudo", "-n") if root and self.sudo else ()), *command]
        process = subprocess.Popen(
            [*self._ssh(), self.name, shlex.join(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        errors: list[str] = []
        reader = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            for line in process.stdout:
                tell(line.rstrip("\n"))
            code = process.wait()
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.kill()
            process.wait()
        reader.join(5)
        self._check(code, "".join(errors))

    def copy(self, file: Path, path: str, there: int = 0) -> None:
        """Copy a file there, going on behind the `there` bytes that are there already.

        Raises:
            ConnectionLostError: it broke off; what arrived stays for the next time.
            RemoteError: it cannot be written there, for example because the disk is full.
        """
        if there == file.stat().st_size:
            return
        verb = "put -a" if there else "put"
        batch = f"{verb} {_quoted(str(file))} {_quoted(path)}\n"
        done = subprocess.run(
            [*self._ssh("sftp"), "-b", "-", self.name], input=batch, capture_output=True, text=True
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            why = said[-1] if said else "sftp says nothing"
            if any("remote write" in line or "write remote" in line or "Failure" in line for line in said):
                raise RemoteError(f"{path} cannot be written: {why} (is the disk full?)")
            raise ConnectionLostError(f"the copy broke off ({why}): run it again, it goes on where it was")

    def _command(self, words: Sequence[str], *, root: bool) -> list[str]:
        shell = [*(("sudo", "-n") if root and self.sudo else ()), "sh", "-s", "--", *words]
        return [*self._ssh(), self.name, shlex.join(shell)]

    def _ssh(self, program: str = "ssh") -> list[str]:
        command = [program]
        if self.config is not None:
            command += ["-F", str(self.config)]
        if self.shared is not None:
            command += [
                "-o",
                "ControlMaster=auto",
                "-o",
                f"ControlPath={self.shared}",
                "-o",
                "ControlPersist=60",
            ]
        for option in (*self.options, *_OPTIONS, *([f"Port={self.port}"] if self.port else ())):
            command += ["-o", option]
        return command

    def _check(self, code: int, stderr: str) -> None:
        if code == 0:
            return
        lines = [line.removeprefix("prunella: ") for line in stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {code}"
        if code == _BROKEN or code < 0:
            raise ConnectionLostError(f"{self.name}: {last}")
        raise RemoteError(last)


def parse_host(
    text: str, *, options: Sequence[str] = (), config: Path | None = None, sudo: bool = False
) -> Host:
    """`user@host`, or `user@host:2222`.

    Raises:
        UsageError: none of both, or something that ssh would take for an option.
    """
    name, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or name.endswith(":"):
        name, port = text, ""
    if not name or name.startswith("-") or any(sign.isspace() for sign in name):
        raise UsageError(f"{text!r} is no host: write user@host, or user@host:PORT")
    return Host(name, int(port) if port else None, tuple(options), config, sudo)


def require_ssh() -> None:
    """Raises UsageError where the programs are not here."""
    missing = [name for name in ("ssh", "sftp") if shutil.which(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} is not here: install OpenSSH's client")


def _quoted(path: str) -> str:
    """As sftp's batch reads it."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def lines(text: str) -> Iterator[tuple[str, str]]:
    """`name=value` lines."""
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            yield name, value
