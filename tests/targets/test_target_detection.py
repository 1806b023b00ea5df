"""Which machine is which target, and what it lacks."""

import json
from dataclasses import replace

import pytest

from prunella.cli import main
from prunella.device_runtime.base.errors import EngineError, TargetError
from prunella.device_runtime.engines import provider_options
from prunella.targets import targets as verb
from prunella.targets.detect import detect, match_target
from prunella.targets.machine import Machine, read_machine
from prunella.targets.profile import list_targets, load_target

# As these machines' systems report themselves.
MACHINES = {
    "x86-cpu": Machine("x86_64", "Linux", soc="AMD Ryzen 7 5800X 8-Core Processor"),
    "cuda-desktop": Machine("AMD64", "Windows", soc="Intel64 Family 6", gpus=("NVIDIA GeForce RTX 3060",)),
    "apple-silicon": Machine("arm64", "Darwin", soc="Apple M3 Pro", memory_mb=18_000),
    "raspberry-pi-5": Machine(
        "aarch64", "Linux", ("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")
    ),
    "jetson-orin-nano": Machine(
        "aarch64",
        "Linux",
        (
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "nvidia,p3768-0000+p3767-0005-super",
            "nvidia,p3767-0005",
            "nvidia,tegra234",
        ),
    ),
    "raspberry-pi-4": Machine("aarch64", "Linux", ("Raspberry Pi 4 Model B Rev 1.4", "brcm,bcm2711")),
    "rk3588": Machine("aarch64", "Linux", ("Orange Pi 5", "xunlong,orangepi-5", "rockchip,rk3588s")),
    "intel-n100": Machine("x86_64", "Linux", soc="Intel(R) N100"),
    "snapdragon-x": Machine(
        "ARM64", "Windows", soc="Snapdragon(R) X Elite - X1E78100 - Qualcomm(R) Oryon(TM) CPU"
    ),
    "jetson-thor": Machine(
        "aarch64", "Linux", ("NVIDIA Jetson AGX Thor Developer Kit", "nvidia,tegra264"), l4t="R38"
    ),
    "jetson-orin-nano-jetpack7": Machine(
        "aarch64", "Linux", ("NVIDIA Jetson Orin Nano Developer Kit", "nvidia,p3767-0005"), l4t="R39"
    ),
    "jetson-agx-orin-jetpack7": Machine(
        "aarch64", "Linux", ("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3701-0000"), l4t="R38"
    ),
    "jetson-agx-orin": Machine(
        "aarch64",
        "Linux",
        ("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0000", "nvidia,tegra234"),
    ),
}


def all_targets():
    return [load_target(name) for name in list_targets()]


def test_every_target_has_its_machine():
    assert set(MACHINES) == set(list_targets())
    for name, machine in MACHINES.items():
        assert detect(all_targets(), machine)[0].target.name == name


def test_a_machine_of_none():
    with pytest.raises(
        TargetError, match=r"no target is for this machine \(nearest: raspberry-pi-5.*device_tree"
    ):
        detect(
            [load_target("raspberry-pi-5"), load_target("x86-cpu")],
            Machine("aarch64", "Linux", ("Raspberry Pi 4 Model B", "brcm,bcm2711")),
        )
    with pytest.raises(TargetError, match="no target is for this machine"):
        detect([], MACHINES["x86-cpu"])


def test_a_profile_without_rules_is_for_no_machine():
    target = replace(load_target("x86-cpu"), match=type(load_target("x86-cpu").match)())
    assert not match_target(target, MACHINES["x86-cpu"]).fits


def test_reading_a_board(tmp_path):
    tree, cards = tmp_path / "proc/device-tree", tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    tree.mkdir(parents=True)
    cards.mkdir(parents=True)
    (tree / "model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.1\0")
    (tree / "compatible").write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    (cards / "information").write_text("Model: \t\t NVIDIA H100\nIRQ: 1\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8245316 kB\n")
    machine = read_machine(tmp_path)
    assert machine.device_tree == ("Raspberry Pi 5 Model B Rev 1.1", "raspberrypi,5-model-b", "brcm,bcm2712")
    assert machine.gpus == ("NVIDIA H100",)
    assert machine.memory_mb == 8443
    assert machine.l4t == "R36"
    assert read_machine(tmp_path / "nothing").device_tree == ()


def test_the_detect_verb_says_why(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(verb, "read_machine", lambda: MACHINES["raspberry-pi-5"])
    assert main(["targets", "detect"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "raspberry-pi-5\n"
    assert "because device_tree: Raspberry Pi 5 Model B Rev 1.0" in captured.err
    assert "not x86-cpu: arch: wants x86_64 or AMD64, is aarch64" in captured.err
    mine = tmp_path / "mine.toml"
    mine.write_text('name = "mine"\ninherits = "raspberry-pi-5"\n[match]\nsoc = [""]\n')
    assert main(["targets", "detect", "--json", "--profile", str(mine)]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "mine"


def test_check(monkeypatch, capsys):
    monkeypatch.setattr(verb, "read_machine", lambda: MACHINES["x86-cpu"])
    assert main(["targets", "check", "x86-cpu"]) == 0
    assert main(["targets", "check", "jetson-agx-orin"]) == 1
    out = capsys.readouterr().out
    assert "MISSING  machine" in out
    assert "MISSING  TensorrtExecutionProvider" in out
    assert "pip install onnxruntime-gpu --index-url" in out


def test_what_only_the_second_engine_needs_is_no_fault(monkeypatch, capsys):
    monkeypatch.setattr(verb, "read_machine", lambda: MACHINES["x86-cpu"])

    def not_installed():
        raise EngineError("llama-cpp-python is not installed")

    monkeypatch.setattr("prunella.targets.check.llama_library", not_installed)
    assert main(["targets", "check", "x86-cpu"]) == 0
    assert "absent   llama-cpp-python" in capsys.readouterr().out
    assert main(["targets", "check", "cuda-desktop"]) == 1
    assert "MISSING  llama-cpp-python" in capsys.readouterr().out


@pytest.mark.native
def test_settings_that_a_target_may_make_exist_in_llama_cpp():
    llama_cpp = pytest.importorskip("llama_cpp")
    of_model = dict(llama_cpp.llama_model_params._fields_)
    of_context = dict(llama_cpp.llama_context_params._fields_)
    assert set(provider_options.LLAMA_MODEL_OPTIONS) <= set(of_model)
    assert set(provider_options.LLAMA_CONTEXT_OPTIONS) <= set(of_context)


def test_providers_that_a_target_may_name_exist_in_onnxruntime():
    import onnxruntime

    assert set(provider_options.PROVIDER_OPTIONS) <= set(onnxruntime.get_all_providers())
