"""Services on a device: started, stopped and asked for through systemd, launchd or the supervisor script."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from layout import Device, InstallError, write

UNITS = Path("/etc/systemd/system")
AGENTS = Path("Library/LaunchAgents")  # of a user's home


class Services:
    """The services of a prefix, through systemd, launchd or the supervisor script."""

    def __init__(self, device: Device, manager: str) -> None:
        self.device = device
        self.manager = manager

    def names(self) -> list[str]:
        """Those that were asked for, as PREFIX/state remembers."""
        path = self.device.state / "services"
        return path.read_text().split() if path.is_file() else []

    def remember(self, names: list[str]) -> None:
        write(self.device.state / "services", "\n".join([*names, ""]))
        write(self.device.state / "manager", f"{self.manager}\n")

    def restart(self) -> None:
        """Run what `current` is."""
        for name in self.names():
            if self.manager == "systemd":
                self._unit(name)
            elif self.manager == "launchd":
                self._agent(name)
            else:
                self._supervise(name)

    def stop(self, *, forget: bool = False) -> None:
        for name in self.names():
            if self.manager == "systemd":
                call("systemctl", "disable", "--now", f"prunella-{name}.service")
                if forget:
                    (UNITS / f"prunella-{name}.service").unlink(missing_ok=True)
                    call("systemctl", "daemon-reload")
            elif self.manager == "launchd":
                plist = Path.home() / AGENTS / f"prunella.{name}.plist"
                call("launchctl", "bootout", f"gui/{os.getuid()}", str(plist))
                if forget:
                    plist.unlink(missing_ok=True)
            elif (self.device.prefix / "bin" / "supervisor").is_file():
                call(str(self.device.prefix / "bin" / "supervisor"), "stop", name)

    def state(self, name: str) -> str:
        if self.manager == "systemd":
            return said("systemctl", "is-active", f"prunella-{name}.service")
        if self.manager == "launchd":
            listed = said("launchctl", "list", f"prunella.{name}")
            return "running" if '"PID"' in listed else "stopped"
        return said(str(self.device.prefix / "bin" / "supervisor"), "status", name)

    def _unit(self, name: str) -> None:
        text = self._filled(self.device.prefix / "current" / "systemd" / f"prunella-{name}.service")
        path = UNITS / f"prunella-{name}.service"
        if not path.is_file() or path.read_text() != text:
            write(path, text)
            call("systemctl", "daemon-reload")
        call("systemctl", "reset-failed", path.name)
        call("systemctl", "enable", path.name)
        if call("systemctl", "restart", path.name):
            raise InstallError(f"systemd does not start {path.name}: journalctl -u {path.name} says why")

    def _agent(self, name: str) -> None:
        plist = Path.home() / AGENTS / f"prunella.{name}.plist"
        plist.parent.mkdir(parents=True, exist_ok=True)
        (self.device.prefix / "run").mkdir(exist_ok=True)
        call("launchctl", "bootout", f"gui/{os.getuid()}", str(plist))
        write(plist, self._filled(self.device.prefix / "current" / "launchd" / plist.name))
        if call("launchctl", "bootstrap", f"gui/{os.getuid()}", str(plist)):
            raise InstallError(
                f"launchd does not start {plist}: launchctl print gui/{os.getuid()}/{plist.stem} says why"
            )

    def _supervise(self, name: str) -> None:
        own, shipped = (
            self.device.prefix / "bin" / "supervisor",
            self.device.prefix / "current" / "lib" / "supervisor.sh",
        )
        if not own.is_file() or own.read_bytes() != shipped.read_bytes():
            own.parent.mkdir(exist_ok=True)
            write(own, shipped.read_text(), 0o755)
        child = self.device.prefix / "run" / f"{name}.pid"
        before = _content(child)
        call(str(own), "restart", name)
        until = time.monotonic() + 30  # the old process may be finishing its requests
        while before and time.monotonic() < until and _content(child) == before:
            time.sleep(0.05)

    def _filled(self, template: Path) -> str:
        return template.read_text().replace("@PREFIX@", str(self.device.prefix))


def _content(path: Path) -> str:
    """Nothing where there is no such file, or none any more: the supervisor takes it away at any moment."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def call(*command: str) -> int:
    """Exit code of a command whose words nobody needs."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return 127


def said(*command: str) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.strip()
