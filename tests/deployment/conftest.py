"""A runtime of a few lines in place of the real one, archives with it, and a device: a real sshd of its own on this machine."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from served import free_ports

from prunella.deployment import pack as packing
from prunella.deployment import wheelhouse
from prunella.deployment.pack import Packed, PackOptions
from prunella.deployment.ssh import Host
from prunella.device_runtime.base.files import sha256
from prunella.device_runtime.bundle import (
    MANIFEST_NAME,
    AudioSpec,
    Bundle,
    BundleManifest,
    DecoderSpec,
    FileEntry,
    PromptSpec,
)
from prunella.targets.fit import Fit
from prunella.targets.machine import read_machine
from prunella.targets.profile import MatchRules, TargetProfile

TEXT = "go forward ten meters"
# What the real one does with the same words, as far as an installer sees.
RUNTIME = """
import http.server, json, os, sys, time
from pathlib import Path

def said(name):
    facts = json.loads((Path(os.environ["PRUNELLA_BUNDLE"]) / "onnx" / "said.json").read_text())
    return facts.get(name, facts["text"])

def main():
    if sys.argv[1] == "transcribe":
        if said("dies"):
            os.kill(os.getpid(), said("dies"))
        for _ in range(2):
            print(json.dumps({"text": said("self_test"), "timings": {"total": said("seconds")}}))
        return 0
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"text": said("serve")}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *_):
            pass
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PRUNELLA_PORT"])), Handler).serve_forever()
"""


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    entries = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{one},,\n" for one in [*entries, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for one, text in {**entries, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(one), text)
    return path


PIP = """
import sys, zipfile
from pathlib import Path

words = sys.argv
for line in Path(words[words.index("-r") + 1]).read_text().splitlines():
    name, version = line.split()[0].split("==")
    (wheel,) = Path(words[words.index("--find-links") + 1]).glob(f"{name}-{version}-*.whl")
    zipfile.ZipFile(wheel).extractall(words[words.index("--target") + 1])
"""


@pytest.fixture(scope="session")
def target() -> TargetProfile:
    """This machine."""
    machine = read_machine()
    return TargetProfile(
        name="this-machine",
        description="where the tests run",
        engines=("onnx",),
        recipe="int4",
        recipes=("int4",),
        threads=1,
        python=f"3.{sys.version_info[1]}",
        match=MatchRules(arch=(machine.arch,), os=(machine.os,)),
    )


@pytest.fixture(scope="session")
def tiny_wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    write_wheel(folder, "prunella", "0.0.0", {"prunella/__init__.py": "", "prunella/cli.py": RUNTIME})
    write_wheel(folder, "pip", "0.0", {"pip/__main__.py": PIP})
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory, target, tiny_wheels) -> Callable[..., Packed]:
    """Pack a bundle that says what it is told, with the runtime of a few lines; once for the same words."""
    made: dict[str, Packed] = {}

    def collected(folder, *_, **__):
        for wheel in tiny_wheels.glob("*.whl"):
            shutil.copyfile(wheel, folder / wheel.name)
        own = wheelhouse.read_wheel(next(folder.glob("prunella-*.whl")))
        (folder / "requirements.txt").write_text(f"prunella==0.0.0 --hash=sha256:{own.sha256}\n")
        return (own,)

    def make(*, key: Path | None = None, target: TargetProfile = target, bulk: int = 0, **said) -> Packed:
        asked = repr((key, target, bulk, sorted(said.items())))
        if asked not in made:
            folder = tmp_path_factory.mktemp("packed")
            bundle = write_bundle(folder / "tiny", {"text": TEXT, "seconds": 0.1, "dies": 0, **said}, bulk)
            options = PackOptions(texts=(TEXT,), seconds=2.0, key=key)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(packing, "collect_wheels", collected)
                patch.setattr(
                    packing, "fit_bundle", lambda *_: Fit(1.0, 1.0, 1.0, 0, None)
                )  # its graphs are none
                made[asked] = packing.pack(bundle, target, folder / "dist", options)
        return made[asked]

    return make


def write_bundle(folder: Path, said: dict[str, object], bulk: int) -> Bundle:
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "said.json").write_text(json.dumps(said))
    for graph in ("audio_encoder", "embed_tokens", "decoder_model_merged"):
        (folder / "onnx" / f"{graph}.onnx").write_bytes(os.urandom(bulk) if bulk else b"graph")
    (folder / "tokenizer.json").write_text("{}")
    files = {
        file.relative_to(folder).as_posix(): FileEntry(sha256(file), file.stat().st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = BundleManifest(
        name="tiny",
        family="ultravox",
        target="x86-cpu",
        engines=("onnx",),
        recipe="int4",
        audio=AudioSpec(),
        prompt=PromptSpec.around_audio("say: ", "", (1,), (2,), (2,)),
        decoder=DecoderSpec(2, 4, 1, 4, 100),
        files=files,
    )
    (folder / MANIFEST_NAME).write_text(manifest.dumps())
    return Bundle(folder, manifest)


@pytest.fixture(scope="session")
def keys(tmp_path_factory) -> Path:
    """A folder with SSH keys: `device` to come in, `maker` and `stranger` to sign."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("device", "host", "maker", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    return folder


@dataclass
class Device:
    """A prefix on this machine, behind an sshd."""

    host: Host
    prefix: Path
    port: int

    def heard(self) -> str | None:
        """What its server says to a recording; None: nothing answers."""
        from prunella.deployment.device import probe

        try:
            return probe.transcribe(probe.Address(port=self.port), packing.CLIP, 5)
        except probe.ProbeError:
            return None

    def heard_soon(self, seconds: float = 20.0) -> str | None:
        until = time.monotonic() + seconds
        while (said := self.heard()) is None and time.monotonic() < until:
            time.sleep(0.1)
        return said

    def current(self) -> str | None:
        link = self.prefix / "current"
        return link.readlink().name if link.is_symlink() else None


@pytest.fixture(scope="session")
def sshd(keys, tmp_path_factory) -> Iterator[Path]:
    """An ssh configuration, by which `device` is this machine."""
    folder = tmp_path_factory.mktemp("sshd")
    (port,) = free_ports(1)
    (folder / "authorized_keys").write_bytes((keys / "device.pub").read_bytes())
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nPidFile {folder}/pid\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nUsePAM no\n"
        "MaxStartups 100\nSubsystem sftp internal-sftp\n"
    )
    (folder / "ssh_config").write_text(
        f"Host device*\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentityFile {keys}/device\n"
        f" IdentitiesOnly yes\n StrictHostKeyChecking no\n UserKnownHostsFile {folder}/known_hosts\n LogLevel ERROR\n"
    )
    if not os.geteuid():
        Path("/run/sshd").mkdir(exist_ok=True)  # as its package's service makes it
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert program, "OpenSSH's server is not here: apt install openssh-server"
    server = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 10
        while subprocess.run(
            ["ssh", "-F", folder / "ssh_config", "device", "true"], capture_output=True
        ).returncode:
            assert time.monotonic() < until, "sshd does not start"
            time.sleep(0.1)
        yield folder / "ssh_config"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def device(sshd, tmp_path) -> Iterator[Device]:
    """A new one, with a port for its server and nothing installed; all its processes end with the test."""
    (port,) = free_ports(1)
    prefix = tmp_path / "prunella"
    (prefix / "etc").mkdir(parents=True)
    (prefix / "etc" / "serve.env").write_text(f"PRUNELLA_PORT={port}\n")
    yield Device(Host("device", config=sshd), prefix, port)
    end(prefix)


def end(prefix: Path) -> None:
    for name in ("serve.supervisor.pid", "serve.pid"):
        file = prefix / "run" / name
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)
