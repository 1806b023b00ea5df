"""What can be seen of a device's health: each look is a finding, with a remedy where something is wrong.

What a machine does not have is `absent`, which is no fault.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from prunella.device_runtime.base.environment import unknown_variables
from prunella.device_runtime.base.errors import AudioError, EngineError, PrunellaError
from prunella.device_runtime.bundle import Bundle
from prunella.targets.fit import fit_bundle
from prunella.targets.profile import TargetProfile

_HOT, _TOO_HOT = 75.0, 85.0  # °C; a Raspberry Pi slows down at 80, and at 85 at the latest
_RATES = (16_000, 44_100, 48_000)
_TIMEOUT = 10.0  # seconds for a tool
# Bits of `vcgencmd get_throttled`, as Raspberry Pi documents them.
_THROTTLED = {
    0: "under-voltage now",
    1: "frequency capped now",
    2: "throttled now",
    3: "soft temperature limit now",
}
_WAS_THROTTLED = {
    16: "under-voltage since boot",
    17: "frequency was capped since boot",
    18: "throttled since boot",
    19: "soft limit since boot",
}
_SLOW_CLOCKS = ("jiffies", "acpi_pm", "hpet", "refined-jiffies")


@dataclass(frozen=True)
class Health:
    """One look at a device.

    Attributes:
        what: was looked at.
        state: "ok", "warning", "fault", or "absent".
        detail: what was seen.
        remedy: what to do; "" where nothing is wrong.
    """

    what: str
    state: str
    detail: str
    remedy: str = ""


def engines(bundle: Bundle | None) -> Iterator[Health]:
    """The libraries that are installed, and whether the hardware that the bundle asks for can be used."""
    for library, package in (("onnx", "onnxruntime"), ("gguf", "llama-cpp-python")):
        needed = bundle is not None and bundle.manifest.engines[0] == library
        try:
            yield Health(package, "ok", _version(package))
        except importlib.metadata.PackageNotFoundError:
            state = "fault" if needed else "absent"
            yield Health(
                package,
                state,
                "not installed",
                "install the archive of `prunella pack` again" if needed else "",
            )
    if bundle is None:
        yield Health("bundle", "absent", "none is named, and none is installed")
        return
    manifest = bundle.manifest
    yield Health(
        "bundle",
        "ok",
        f"{bundle.path.name}: {manifest.recipe}, {bundle.total_bytes / 1e6:.0f} MB, every sha256 is right",
    )
    wanted = [provider.name for provider in manifest.providers] or ["CPUExecutionProvider"]
    try:
        import onnxruntime

        present = onnxruntime.get_available_providers()
    except ImportError as error:
        if "onnx" in manifest.engines:
            yield Health(
                "providers",
                "fault",
                f"onnxruntime cannot be loaded ({error})",
                "install the archive of `prunella pack` again",
            )
        return
    missing = [name for name in wanted if name not in present]
    if missing:
        used = next((name for name in wanted if name in present), "CPUExecutionProvider")
        yield Health(
            "providers",
            "warning",
            f"{', '.join(missing)} is not in this onnxruntime: {used} is used instead",
            "install the onnxruntime of this hardware (`prunella targets show NAME`), or export for the processor",
        )
    else:
        yield Health("providers", "ok", ", ".join(wanted))


def opening(bundle: Bundle | None) -> Iterator[Health]:
    """Whether the model loads and turns a second of silence into nothing."""
    if bundle is None:
        return
    import numpy as np

    from prunella.device_runtime.opening import open_transcriber

    try:
        transcriber = open_transcriber(bundle.path)
        transcriber.transcribe(np.zeros(16_000, np.float32))
    except (PrunellaError, EngineError) as error:
        yield Health("model", "fault", str(error), "follow what it says")
    else:
        yield Health("model", "ok", f"loads and runs in {transcriber.engine.name}")


def microphone() -> Iterator[Health]:
    """The default microphone, its level, and the rates that it takes."""
    try:
        from prunella.device_runtime.devices import survey

        found = survey()
    except (AudioError, OSError) as error:
        yield Health("microphone", "absent", str(error), "for `serve` none is needed")
        return
    device = next((one for one in found.devices if one.default), found.devices[0])
    loudness = found.levels.get(device.index)
    rates = [rate for rate in _RATES if _takes(device.index, rate)]
    detail = f"{device.name}, {device.rate} Hz (takes {', '.join(map(str, rates)) or 'none of the usual rates'}), {loudness}"
    if isinstance(loudness, float):
        silent = loudness < -90
        remedy = "it is muted: alsamixer, F4" if silent else ""
        yield Health("microphone", "warning" if silent else "ok", f"{detail} dBFS", remedy)
    else:
        yield Health("microphone", "fault", detail, "is another program using it? fuser -v /dev/snd/*")


def temperature(root: Path) -> Iterator[Health]:
    """The hottest sensor, and whether the processor is being slowed down."""
    degrees = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        text = read_text(zone / "temp")
        if text.lstrip("-").isdigit():
            degrees[read_text(zone / "type") or zone.name] = int(text) / 1000
    if degrees:
        name, hottest = max(degrees.items(), key=lambda pair: pair[1])
        state = "fault" if hottest >= _TOO_HOT else "warning" if hottest >= _HOT else "ok"
        yield Health(
            "temperature",
            state,
            f"{hottest:.0f} °C ({name})",
            "" if state == "ok" else "cool it: a fan, or fewer threads",
        )
    else:
        yield Health("temperature", "absent", "no sensor")
    if shutil.which("vcgencmd"):
        yield _of_raspberry(said("vcgencmd", "get_throttled"))
        return
    counts = [
        int(text)
        for path in (root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/core_throttle_count")
        if (text := read_text(path)).isdigit()
    ]
    if counts:
        often = sum(counts)
        yield Health(
            "throttling",
            "warning" if often else "ok",
            f"{often} times since boot",
            "cool it: a fan, or fewer threads" if often else "",
        )
    else:
        yield Health("throttling", "absent", "this machine does not count it")


def _of_raspberry(told: str) -> Health:
    try:
        bits = int(told.partition("=")[2], 16)
    except ValueError:
        return Health("throttling", "absent", f"vcgencmd says {told!r}")
    now = [text for bit, text in _THROTTLED.items() if bits >> bit & 1]
    before = [text for bit, text in _WAS_THROTTLED.items() if bits >> bit & 1]
    if not now and not before:
        return Health("throttling", "ok", "none since boot")
    remedy = (
        "take a stronger power supply (5 V, 5 A for a Pi 5)"
        if bits & 0x10001
        else "cool it: a fan, or fewer threads"
    )
    return Health("throttling", "fault" if now else "warning", ", ".join(now + before), remedy)


def power(root: Path) -> Iterator[Health]:
    """The processor's governor, and a Jetson's power mode."""
    governors = sorted(
        {
            read_text(path)
            for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
        }
        - {""}
    )
    if governors:
        slow = "powersave" in governors and "intel_pstate" not in read_text(
            root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"
        )
        remedy = (
            "echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor" if slow else ""
        )
        yield Health("power mode", "warning" if slow else "ok", f"governor {', '.join(governors)}", remedy)
    elif sys.platform == "darwin":
        low = "lowpowermode 1" in " ".join(said("pmset", "-g").split())
        yield Health(
            "power mode",
            "warning" if low else "ok",
            "low power mode" if low else "normal",
            "switch it off in System Settings → Battery" if low else "",
        )
    else:
        yield Health("power mode", "absent", "the processor's frequency is not the system's to choose")
    if shutil.which("nvpmodel"):
        lines = said("nvpmodel", "-q").splitlines()
        mode = next((line.partition(":")[2].strip() for line in lines if "Power Mode" in line), "unknown")
        best = "MAXN" in mode
        yield Health(
            "Jetson's power mode",
            "ok" if best else "warning",
            mode,
            "" if best else "sudo nvpmodel -m 0 is the fastest",
        )


def memory(bundle: Bundle | None, target: TargetProfile | None) -> Iterator[Health]:
    """Free memory against what the bundle takes, and the disk."""
    free = psutil.virtual_memory().available / 1e6
    needed = 0.0
    if bundle is not None and target is not None:
        with contextlib.suppress(
            PrunellaError
        ):  # a bundle whose graphs cannot be read is a fault of `opening`
            needed = fit_bundle(target, bundle).needed_mb
    if needed:
        enough = free > needed or _runs()
        remedy = "" if enough else "end other programs, or take a smaller recipe"
        yield Health(
            "memory",
            "ok" if enough else "fault",
            f"{free:.0f} MB are free, the bundle takes about {needed:.0f}",
            remedy,
        )
    else:
        yield Health("memory", "ok", f"{free:.0f} MB are free")
    disk = shutil.disk_usage(os.environ.get("PRUNELLA_RELEASE") or Path.cwd()).free / 1e6
    yield Health(
        "disk",
        "ok" if disk > 500 else "warning",
        f"{disk:.0f} MB are free",
        "" if disk > 500 else "an update needs room for a second release: free some space",
    )


def clock(root: Path) -> Iterator[Health]:
    """The kernel's clock source: slow ones cost time at every look."""
    source = read_text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    if not source:
        yield Health("clock source", "absent", "this system does not tell")
        return
    slow = source in _SLOW_CLOCKS
    yield Health(
        "clock source",
        "warning" if slow else "ok",
        source,
        "add clocksource=tsc to the kernel's command line if its log does not call it unstable"
        if slow
        else "",
    )


def variables(arguments: tuple[object, ...]) -> Iterator[Health]:
    """PRUNELLA_ variables that nothing reads."""
    for line in unknown_variables(arguments):  # type: ignore[arg-type]
        yield Health("environment", "warning", line, "spell it as an option of `prunella serve`, or unset it")


def _runs() -> bool:
    """Whether a service already holds the memory that is asked about."""
    return any(
        one.info["name"].startswith("python") and "start.py" in " ".join(one.info["cmdline"] or ())
        for one in psutil.process_iter(["name", "cmdline"])
        if one.info["name"]
    )


def _takes(index: int, rate: int) -> bool:
    import sounddevice

    try:
        sounddevice.check_input_settings(device=index, samplerate=rate, channels=1)
    except (sounddevice.PortAudioError, ValueError):
        return False
    return True


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package == "onnxruntime":
            return f"{importlib.metadata.version('onnxruntime-gpu')} (GPU)"
        raise


def read_text(path: Path) -> str:
    """What a file says; "" where it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def said(*command: str) -> str:
    """What a tool says; "" where it is not there."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
