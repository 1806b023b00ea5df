"""What starts the runtime on a device, filled in for one release: systemd, launchd, podman, docker, Home Assistant."""

from __future__ import annotations

import plistlib
from pathlib import Path

from prunella.deployment.release import Release
from prunella.targets.profile import TargetProfile

TEMPLATES = Path(__file__).parent / "templates"
DEVICE = Path(__file__).parent / "device"
SERVICES = ("serve", "listen")
_HA_ARCH = {"aarch64": "aarch64", "x86_64": "amd64"}
_SPARE_MB = 256  # over the profile's budget, for recordings that wait
_DEVICES = {
    "serve": "PrivateDevices=yes",
    "listen": "DevicePolicy=closed\nDeviceAllow=char-alsa rw\nSupplementaryGroups=audio",
}


def write_service_files(folder: Path, release: Release, target: TargetProfile) -> None:
    """Put everything beside the bundle that one of the ways to run it needs."""
    memory = _memory_mb(release, target)
    words = {
        "NAME": release.bundle.lower(),
        "ID": release.id,
        "TARGET": release.target,
        "PYTHON": release.python,
        "OS": release.os,
        "ARCH": release.arch,
        "HA_ARCH": _HA_ARCH.get(release.arch, release.arch),
        "MEMORY": str(memory),
        "NATIVE": _native(release, target),
    }
    _copy(DEVICE / "install.sh", folder / "install.sh", words, executable=True)
    _copy(TEMPLATES / "DEVICE.md", folder / "DEVICE.md", words)
    lib = folder / "lib"
    lib.mkdir()
    for file in sorted(DEVICE.glob("*")):
        if file.suffix in (".py", ".sh") and file.name not in ("__init__.py", "install.sh"):
            _copy(file, lib / file.name, {}, executable=file.suffix == ".sh")
    etc = folder / "etc"
    etc.mkdir()
    for name in SERVICES:
        (etc / f"{name}.env").write_text(_settings(name, release, target))
    if release.os == "Darwin":
        (folder / "launchd").mkdir()
        for name in SERVICES:
            (folder / "launchd" / f"prunella.{name}.plist").write_bytes(_agent(name))
        return
    (folder / "systemd").mkdir()
    for name in SERVICES:
        filled = {**words, "LIMITS": _limits(memory), "DEVICES": _DEVICES[name]}
        _copy(TEMPLATES / f"prunella-{name}.service", folder / "systemd" / f"prunella-{name}.service", filled)
    for name in ("Dockerfile", "compose.yaml", "prunella.container", "config.yaml"):
        _copy(TEMPLATES / name, folder / name, words)


def _copy(source: Path, target: Path, words: dict[str, str], *, executable: bool = False) -> None:
    text = source.read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    target.write_text(text, encoding="utf-8")
    target.chmod(0o755 if executable else 0o644)


def _memory_mb(release: Release, target: TargetProfile) -> int:
    """What the service may take at most: the profile's budget, or twice what is estimated where it has none."""
    return max(target.memory.budget_mb or 2 * release.memory_mb, release.memory_mb) + _SPARE_MB


def _limits(memory: int) -> str:
    return (
        f"MemoryHigh={memory}M\nMemoryMax={memory * 5 // 4}M\nTasksMax=256\nLimitNOFILE=4096\nOOMPolicy=stop"
    )


def _settings(name: str, release: Release, target: TargetProfile) -> str:
    lines = [
        f"# Settings of `prunella {name}`: each of its options, `--max-seconds` as PRUNELLA_MAX_SECONDS. Kept by updates."
    ]
    if target.threads:
        lines.append(f"PRUNELLA_THREADS={target.threads}")
    if name == "serve":
        lines += [
            "PRUNELLA_HOST=127.0.0.1",
            "PRUNELLA_PORT=8000",
            "#PRUNELLA_WYOMING=10300",
            "#PRUNELLA_API_KEY_FILE=",
        ]
    else:
        lines += ["PRUNELLA_JSON=1", "#PRUNELLA_DEVICE=Microphone"]
    return "\n".join(lines) + "\n"


def _agent(name: str) -> bytes:
    """A launchd agent: it runs while its user is logged in, which is who may use the microphone."""
    start = f'set -a; . "@PREFIX@/etc/{name}.env"; set +a; exec "@PREFIX@/current/bin/prunella" {name}'
    return plistlib.dumps(
        {
            "Label": f"prunella.{name}",
            "ProgramArguments": ["/bin/sh", "-c", start],
            "RunAtLoad": True,
            "KeepAlive": True,
            "ThrottleInterval": 10,
            "ProcessType": "Interactive",
            "StandardOutPath": f"@PREFIX@/run/{name}.log",
            "StandardErrorPath": f"@PREFIX@/run/{name}.log",
        }
    )


def _native(release: Release, target: TargetProfile) -> str:
    if "gguf" not in release.engines[:1]:
        return ""
    lines = "\n".join(f"    {line}" for line in target.install if "gguf" in line or "llama" in line)
    return f"llama.cpp must be compiled for the device. The wheel in `wheels/` was; where it does not run, on the device:\n\n{lines}\n"
