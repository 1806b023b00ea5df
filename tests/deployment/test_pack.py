"""`prunella pack`: the same bytes, nothing missing, and files that those who read them take."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft201909Validator

from prunella.deployment import formats, service_files
from prunella.deployment.archive import read_first, write_archive
from prunella.deployment.device_fit import Device, misfits, read_device
from prunella.deployment.device_platform import DevicePlatform
from prunella.deployment.own_wheel import write_own_wheel
from prunella.deployment.pack import PackOptions, pack, usable_engines
from prunella.deployment.release import read_release
from prunella.deployment.wheelhouse import _closure, read_wheel
from prunella.device_runtime.base.errors import TargetError, UsageError
from prunella.device_runtime.bundle import open_bundle
from prunella.targets.profile import list_targets, load_target

pytest.importorskip("cyclonedx")

QUADLET = Path("/usr/libexec/podman/quadlet")  # of podman 4.4 and later


@pytest.fixture(scope="session")
def unpacked(packed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(packed().path, folder)
    (inner,) = folder.iterdir()
    return inner


def test_two_packs_have_the_same_bytes(packed, unpacked, tmp_path):
    one = packed()
    shutil.copytree(unpacked, tmp_path / unpacked.name)
    for file in (tmp_path / unpacked.name).rglob("*"):
        file.touch()  # another time, which must not be seen
    write_archive(tmp_path / unpacked.name, tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == one.path.read_bytes()
    with tarfile.open(one.path) as archive:
        entries = archive.getmembers()
    assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in entries} == {(0, 0, "", "")}
    assert {entry.mode for entry in entries} == {0o644, 0o755}
    assert read_release(one.path) == one.release


def test_its_own_wheel_has_what_the_runtime_needs(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = write_own_wheel(tmp_path / "a"), write_own_wheel(tmp_path / "b")
    assert one.read_bytes() == two.read_bytes()
    wheel = read_wheel(one)
    assert wheel.name == "prunella" and any(text.startswith("onnxruntime") for text in wheel.requires)
    names = set(zipfile.ZipFile(one).namelist())
    for needed in (
        "cli.py",
        "targets/x86-cpu.toml",
        "deployment/templates/Dockerfile",
        "device_runtime/servers/page/page.js",
    ):
        assert f"prunella/{needed}" in names
    assert not any(name.startswith(("prunella/tests", "prunella/out")) for name in names)


def test_what_holds_only_on_the_device_is_found_missing(tmp_path):
    """pip decides markers by the machine it runs on; a device may have another Python."""
    from packaging.requirements import Requirement

    own = read_wheel(write_own_wheel(tmp_path))
    have = {"prunella": replace(own, requires=("tomli>=2; python_version < '3.11'", "numpy; extra == 'cpu'"))}
    for version, missing in (("3.10", ["tomli>=2", "numpy"]), ("3.11", ["numpy"])):
        platform = DevicePlatform("Linux", "aarch64", version, 36)
        found = _closure(have, ("prunella", ("cpu",)), platform, Requirement)[1]
        assert sorted(found) == sorted(missing)


@pytest.mark.slow
def test_the_bill_of_materials_holds_to_its_schema(packed, unpacked):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (unpacked / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    body = json.loads(text)
    kinds = {one["type"]: one for one in body["components"]}
    assert kinds["application"]["name"] == "prunella" and kinds["application"]["hashes"]
    assert kinds["machine-learning-model"]["modelCard"]["modelParameters"]["architectureFamily"] == "ultravox"
    assert "timestamp" not in body["metadata"]


@pytest.mark.native
def test_scripts_are_clean(unpacked):
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "apt install shellcheck"
    scripts = [
        unpacked / "install.sh",
        unpacked / "lib" / "supervisor.sh",
        service_files.TEMPLATES / "mender-module",
    ]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.native
def test_units_are_what_systemd_takes(packed, unpacked, tmp_path):
    program = shutil.which("systemd-analyze")
    assert program, "apt install systemd"
    command = tmp_path / "current" / "bin" / "prunella"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    for name in service_files.SERVICES:
        unit = tmp_path / f"prunella-{name}.service"
        text = (unpacked / "systemd" / unit.name).read_text().replace("@PREFIX@", str(tmp_path))
        assert "@" not in re.sub(r"@(system-service|privileged|resources)", "", text)
        unit.write_text(text)
        done = subprocess.run([program, "verify", "--man=no", unit], capture_output=True, text=True)
        # Back-off that grows is of systemd 254; older ones ignore the two keys.
        wrong = [
            line
            for line in done.stderr.splitlines()
            if "RestartSteps" not in line and "RestartMaxDelaySec" not in line
        ]
        assert done.returncode == 0 and not wrong, wrong
        done = subprocess.run(
            [program, "security", "--offline=true", "--threshold=25", unit], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-300:]


def test_the_containers_ask_for_a_round_trip(unpacked):
    service = yaml.safe_load((unpacked / "compose.yaml").read_text())["services"]["prunella"]
    assert service["healthcheck"]["test"][:3] == ["CMD", "python3", "/opt/prunella/current/lib/probe.py"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    app = yaml.safe_load((unpacked / "config.yaml").read_text())
    assert app["discovery"] == ["wyoming"] and app["backup_exclude"] and app["slug"] == "prunella"
    assert {"name", "version", "slug", "description", "arch"} <= set(app)
    dockerfile = (unpacked / "Dockerfile").read_text()
    assert "HEALTHCHECK" in dockerfile and "--wyoming" in dockerfile and "@" not in dockerfile
    sections = re.findall(r"^\[(\w+)\]$", (unpacked / "prunella.container").read_text(), re.M)
    assert sections == ["Unit", "Container", "Service", "Install"]


def test_compose_holds_to_its_schema(unpacked):
    """That of docker-compose 1.29.2, which newer ones extend."""
    schema = json.loads((Path(__file__).parent / "compose_spec.json").read_text())
    validator = Draft201909Validator(schema)
    compose = yaml.safe_load((unpacked / "compose.yaml").read_text())
    assert not [error.message for error in validator.iter_errors(compose)]
    compose["services"]["prunella"]["memory"] = 1
    assert list(validator.iter_errors(compose))


def test_the_quadlet_says_what_the_compose_file_says(unpacked, tmp_path):
    lines = (unpacked / "prunella.container").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    service = yaml.safe_load((unpacked / "compose.yaml").read_text())["services"]["prunella"]
    assert said["Image"].endswith(service["image"]) and said["ReadOnly"] == "true"
    assert said["HealthCmd"].split() == service["healthcheck"]["test"][1:]
    assert said["PodmanArgs"] == f"--memory={service['mem_limit']}"
    if QUADLET.exists():  # podman's own generator, where it is
        shutil.copy(unpacked / "prunella.container", tmp_path)
        done = subprocess.run(
            [QUADLET, "--dryrun"],
            capture_output=True,
            text=True,
            env={**os.environ, "QUADLET_UNIT_DIRS": str(tmp_path)},
        )
        assert done.returncode == 0 and "ExecStart=/usr/bin/podman run" in done.stdout, done.stderr
        assert "unsupported" not in done.stdout + done.stderr


def test_a_mac_gets_an_agent_of_launchd(packed, tmp_path):
    release = replace(packed().release, os="Darwin", arch="arm64")
    service_files.write_service_files(tmp_path, release, load_target("apple-silicon"))
    agent = plistlib.loads((tmp_path / "launchd" / "prunella.serve.plist").read_bytes())
    assert agent["Label"] == "prunella.serve" and agent["KeepAlive"] is True
    assert agent["ProgramArguments"][:2] == ["/bin/sh", "-c"] and not (tmp_path / "systemd").exists()


def test_updaters_get_what_they_take(packed, target, tmp_path, monkeypatch):
    one = packed()
    archive = tmp_path / one.path.name
    shutil.copyfile(one.path, archive)
    (layout,) = formats.oci(archive, one.release, target)
    with tarfile.open(layout) as image:
        index = json.load(image.extractfile("index.json"))
        manifest = json.load(image.extractfile(f"blobs/sha256/{index['manifests'][0]['digest'][7:]}"))
        layer = image.extractfile(f"blobs/sha256/{manifest['layers'][0]['digest'][7:]}").read()
    assert layer == archive.read_bytes() and manifest["artifactType"].startswith("application/vnd.prunella")
    monkeypatch.setattr(formats.shutil, "which", lambda name: None)
    recipe, module = formats.mender(archive, one.release, target)
    assert recipe.name.endswith(".mender.sh") and "mender-artifact write module-image" in recipe.read_text()
    assert module.stat().st_mode & 0o100
    recipe, folder = formats.sysext(archive, one.release, target)
    assert "mksquashfs" in recipe.read_text()
    assert (folder / "opt/prunella/current/bin/prunella").is_file()
    assert "ARCHITECTURE=" in next((folder / "usr/lib/extension-release.d").iterdir()).read_text()
    assert "@" not in (folder / "usr/lib/systemd/system/prunella-serve.service").read_text().replace(
        "@system", ""
    ).replace("@priv", "").replace("@res", "")


def test_a_bundle_that_the_target_does_not_run_is_refused(packed, target, tmp_path):
    bundle = open_bundle(packed().path.parents[1] / "tiny")
    out = tmp_path / "dist"
    with pytest.raises(UsageError, match="has the recipe int4, and this-machine runs int8"):
        pack(bundle, replace(target, recipe="int8", recipes=("int8",)), out)
    with pytest.raises(UsageError, match="is for onnx, and this-machine runs gguf"):
        pack(bundle, replace(target, engines=("gguf",)), out)
    with pytest.raises(UsageError, match="ssh-keygen -t ed25519"):
        pack(bundle, target, out, PackOptions(key=tmp_path / "key"))
    with pytest.raises(UsageError, match="is not there"):
        pack(bundle, target, out, PackOptions(clip=tmp_path / "clip.wav"))
    assert not out.exists()
    assert usable_engines(bundle, load_target("raspberry-pi-5")) == ("onnx",)


def test_every_target_has_a_platform():
    for name in list_targets():
        platform = DevicePlatform.of(load_target(name))
        assert platform.tags and platform.markers["platform_machine"] == platform.arch
    assert DevicePlatform.of(load_target("raspberry-pi-5"), "3.13").markers["python_version"] == "3.13"
    with pytest.raises(UsageError, match=r"Python 2\.7"):
        DevicePlatform.of(load_target("x86-cpu"), "2.7")
    windows = load_target("x86-cpu")
    with pytest.raises(TargetError, match="archives are made for Linux and macOS"):
        DevicePlatform.of(replace(windows, match=replace(windows.match, os=("Windows",))))


def test_what_a_device_lacks_is_foretold(packed):
    release = replace(
        packed().release, arch="aarch64", os="Linux", flags=("asimd",), glibc="2.28", memory_mb=400
    )
    good = Device(
        "Linux", "aarch64", "2.36", release.python, "3.11", 2_000, 9_000, True, ("fp", "asimd"), True, True
    )

    def wrong(**changes) -> list[str]:
        return misfits(
            release, replace(good, **changes), archive_mb=100, systemd=True, prefix="/opt/prunella"
        )

    assert wrong() == []
    for changes, why in (
        ({"arch": "armv7l"}, "it is Linux armv7l"),
        ({"glibc": "2.17"}, "glibc is 2.17"),
        ({"glibc": ""}, "musl"),
        ({"python": "", "python3": "3.9"}, "Python 3.9"),
        ({"flags": ("fp",)}, "illegal instruction"),
        ({"memory_mb": 200}, "200 MB of memory"),
        ({"disk_mb": 100}, "100 MB are free"),
        ({"writable": False}, "cannot be written"),
        ({"systemd": False}, "--no-systemd"),
        ({"root": False}, "--sudo"),
    ):
        (only,) = wrong(**changes)
        assert why in only
    assert read_device({}).memory_mb == 0
    assert read_first(packed().path, "install.sh")["install.sh"].startswith(b"#!/bin/sh")
