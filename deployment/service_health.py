"""The services on this device: their state, who keeps them running, and how the last one ended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from prunella.deployment.health import Health, read_text, said


def services() -> Iterator[Health]:
    """The state of the services, of whoever keeps them running, and how the last one ended."""
    release = os.environ.get("PRUNELLA_RELEASE")
    supervisor = Path(release).parents[1] / "bin" / "supervisor" if release else None
    manager = read_text(Path(release).parents[1] / "state" / "manager") if release else ""
    if manager == "supervisor" and supervisor is not None and supervisor.is_file():
        for name in read_text(supervisor.parents[1] / "state" / "services").split():
            told = said(str(supervisor), "status", name)
            ok = told.startswith("running")
            yield Health(
                f"{name}'s state",
                "ok" if ok else "fault",
                told,
                "" if ok else f"{supervisor} start {name}; {supervisor.parents[1]}/run/{name}.log says why",
            )
            last = read_text(supervisor.parents[1] / "run" / f"{name}.last-exit")
            yield Health(
                f"{name}'s last crash",
                "warning" if last else "ok",
                last or "none",
                f"see {supervisor.parents[1]}/run/{name}.log" if last else "",
            )
        return
    if not Path("/run/systemd/system").is_dir() or not shutil.which("systemctl"):
        yield Health("service", "absent", "neither systemd nor the supervisor script runs here")
        return
    seen = False
    for name in ("serve", "listen"):
        unit = f"prunella-{name}.service"
        facts = dict(
            line.partition("=")[::2]
            for line in said(
                "systemctl",
                "show",
                unit,
                "-p",
                "LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStatus",
            ).splitlines()
        )
        if facts.get("LoadState") != "loaded":
            continue
        seen = True
        ok = facts.get("ActiveState") == "active"
        yield Health(
            f"{name}'s unit",
            "ok" if ok else "fault",
            f"{facts.get('ActiveState')} ({facts.get('SubState')})",
            "" if ok else f"sudo systemctl start {unit}; journalctl -u {unit} says why",
        )
        restarts = facts.get("NRestarts", "0")
        crashed = restarts != "0" or facts.get("Result", "success") != "success"
        yield Health(
            f"{name}'s last crash",
            "warning" if crashed else "ok",
            f"{restarts} restarts, result {facts.get('Result')}, exit code {facts.get('ExecMainStatus')}"
            if crashed
            else "none",
            f"journalctl -u {unit} -p warning" if crashed else "",
        )
    if not seen:
        yield Health("service", "absent", "no unit of prunella is installed")
