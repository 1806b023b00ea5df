"""`prunella doctor`: what is seen of a device, from files as boards have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunella.deployment import doctor, health, service_health
from prunella.device_runtime.base.errors import AudioError


@pytest.fixture
def tools(monkeypatch):
    """What the board's own tools say."""
    said: dict[str, str] = {}
    monkeypatch.setattr(health.shutil, "which", lambda name: f"/usr/bin/{name}" if name in said else None)
    for module in (health, service_health):
        monkeypatch.setattr(module, "said", lambda *words: said.get(words[0], ""))
    return said


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_what_a_machine_does_not_have_is_absent(tmp_path, tools, monkeypatch):
    monkeypatch.delenv("PRUNELLA_RELEASE", raising=False)
    found = [*health.temperature(tmp_path), *health.power(tmp_path), *health.clock(tmp_path)]
    assert [one.state for one in found] == ["absent"] * 4


@pytest.mark.parametrize(
    ("bits", "state", "detail"),
    [
        ("0x0", "ok", "none"),
        ("0x50000", "warning", "under-voltage since boot"),
        ("0x50005", "fault", "throttled now"),
        ("?", "absent", "says"),
    ],
)
def test_a_raspberry_that_is_throttled(tmp_path, tools, bits, state, detail):
    write(
        tmp_path,
        sys__class__thermal__thermal_zone0__temp="84200",
        sys__class__thermal__thermal_zone0__type="cpu-thermal",
    )
    tools["vcgencmd"] = f"throttled={bits}"
    heat, throttled = health.temperature(tmp_path)
    assert heat.state == "warning" and "84 °C (cpu-thermal)" in heat.detail and heat.remedy
    assert throttled.state == state and detail in throttled.detail
    assert bool(throttled.remedy) == (state in ("warning", "fault"))


def test_a_jetson_and_a_slow_clock(tmp_path, tools):
    cpu = "sys__devices__system__cpu__cpu0__cpufreq__"
    write(tmp_path, **{f"{cpu}scaling_governor": "powersave", f"{cpu}scaling_driver": "tegra"})
    tools["nvpmodel"] = "NV Power Mode: 15W\n0"
    governor, mode = health.power(tmp_path)
    assert governor.state == "warning" and "scaling_governor" in governor.remedy
    assert mode.state == "warning" and mode.detail == "15W" and "nvpmodel" in mode.remedy
    write(tmp_path, sys__devices__system__clocksource__clocksource0__current_clocksource="hpet")
    (slow,) = health.clock(tmp_path)
    assert slow.state == "warning" and slow.remedy


def test_the_supervisors_services(tmp_path, tools, monkeypatch):
    release = tmp_path / "releases" / "one"
    release.mkdir(parents=True)
    monkeypatch.setenv("PRUNELLA_RELEASE", str(release))
    write(tmp_path, bin__supervisor="", state__manager="supervisor", state__services="serve")
    write(tmp_path, **{"run__serve.last-exit": "2026-11-28T12:00:00Z exit code 139 after 4 s"})
    tools[str(tmp_path / "bin" / "supervisor")] = "running, process 4"
    state, crash = service_health.services()
    assert state.state == "ok" and crash.state == "warning" and "exit code 139" in crash.detail


def test_a_provider_that_is_not_there_is_announced(packed, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    from dataclasses import replace

    from prunella.device_runtime.bundle import Bundle, Provider, open_bundle

    bundle = open_bundle(packed().path.parents[1] / "tiny")
    wanted = (Provider("NoSuchProvider"), Provider("CPUExecutionProvider"))
    bundle = Bundle(bundle.path, replace(bundle.manifest, providers=wanted))
    assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
    (found,) = [one for one in health.engines(bundle) if one.what == "providers"]
    assert (
        found.state == "warning" and "CPUExecutionProvider is used instead" in found.detail and found.remedy
    )


def test_no_microphone_is_no_fault(monkeypatch):
    from prunella.device_runtime import devices

    def nothing(*_, **__):
        raise AudioError("no microphone is there")

    monkeypatch.setattr(devices, "survey", nothing)
    (found,) = health.microphone()
    assert found.state == "absent"


def test_a_fault_makes_the_exit_code(tmp_path, capsys, monkeypatch):
    from prunella.cli import main

    monkeypatch.setenv("PRUNELLA_PROT", "1")
    assert main(["doctor", str(tmp_path), "--no-microphone"]) == 1
    out = capsys.readouterr().out
    assert "FAULT    bundle" in out and "→" in out and "PRUNELLA_PROT is not known" in out
    assert main(["doctor", str(tmp_path), "--no-microphone", "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"what", "state", "detail", "remedy"} == set(lines[0])
    assert doctor.report([health.Health("a", "absent", "b", "c")]).count("\n") == 0
