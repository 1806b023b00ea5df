"""No verb that is given local files connects to anything, and none leaves a file in HOME outside prunella's own cache."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from prunella.cli import VERBS
from prunella.device_runtime.base.cache import cache_folder
from prunella.export.export import export
from prunella.speech_llm.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow

CLIP = Path(__file__).parents[1] / "examples" / "clips" / "evaluation" / "goforward.flac"
SWITCHES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")

# Where strace may not run, what Python itself connects to is still seen, and the native libraries' traces in HOME.
AUDIT = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        with open(os.environ["PRUNELLA_TEST_TRACE"], "a") as file:
            file.write(f"{event} {arguments[1:] if event != 'socket.getaddrinfo' else arguments}\\n")
sys.addaudithook(watch)
"""
LOCAL = re.compile(r"AF_UNIX|AF_NETLINK|AF_UNSPEC|\b127\.|localhost|\"::1\"|'::1'|'/")


def _strace_runs() -> bool:
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-qq", "true"], capture_output=True).returncode == 0


@pytest.fixture
def watched(tmp_path):
    """A function that gives argv and environment of a watched Python, and one that returns what it saw."""
    home, trace = tmp_path / "home", tmp_path / "trace.txt"
    home.mkdir()
    trace.touch()
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in SWITCHES and not key.startswith(("XDG_", "HF_", "MPL"))
    }
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "PRUNELLA_CACHE": str(cache_folder())}
    prefix: list[str] = []
    if _strace_runs():
        prefix = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]
    else:
        site = tmp_path / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(AUDIT)
        environment |= {"PYTHONPATH": str(site), "PRUNELLA_TEST_TRACE": str(trace)}

    def seen() -> tuple[list[str], list[str]]:
        calls = [
            line
            for line in trace.read_text(errors="replace").splitlines()
            if ("sa_family" in line or "socket." in line) and not LOCAL.search(line)
        ]
        return calls, sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())

    return [*prefix, sys.executable], environment, seen


@pytest.fixture(scope="module")
def tiny(small_speech_llm, tmp_path_factory) -> Path:
    return save_checkpoint(small_speech_llm, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tiny_bundle(small_speech_llm, tmp_path_factory) -> Path:
    return export(small_speech_llm, "x86-cpu", tmp_path_factory.mktemp("bundle") / "tiny", recipe="fp32").path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("speech") / "one.jsonl"
    path.write_text(
        json.dumps({"audio_filepath": str(CLIP), "text": "go forward ten meters", "duration": 2.79}) + "\n"
    )
    return path


CALLS = [
    "models list",
    "targets check x86-cpu --bundle {bundle}",
    "fit {bundle} --target x86-cpu",
    "info {bundle}",
    "transcribe {bundle} {clip}",
    "eval {bundle} --speech {manifest}",
    "verify {tiny_bundle} {tiny} --speech {manifest}",
    "quantize {float} --recipe int8 -o {out}",
    "analyze {tiny} --speech {manifest} -o {out}",
    "export {tiny} --target x86-cpu --recipe fp32 -o {out}",
    "prune {tiny} --block 1:2 --no-bridge -o {out}",
    "heal {tiny} --speech {manifest} --steps 1 --no-augmentation --precision fp32 -o {out}",
    "bench {bundle} --speech {manifest} --repeat 1",
    "listen {bundle} -",
    "devices --no-level",
    "completion bash",
    "doctor {bundle} --no-microphone",
]
MAY_FAIL = ("targets", "fit", "devices", "doctor")  # nothing fits, no microphone, a machine that is too hot
ELSEWHERE = {
    "serve": "the next test",
    "build": "its steps are the verbs above, in one process",
    "pack": "it downloads wheels for a device, which is what it is for",
    "deploy": "it speaks to the devices that are named, through ssh alone",
    "synth": "programs of others speak; what prunella does is a manifest and resampling",
}


def test_every_verb_is_held_to_it():
    assert {call.split()[0] for call in CALLS} | ELSEWHERE.keys() == VERBS.keys()


@pytest.mark.parametrize("arguments", CALLS, ids=lambda arguments: arguments.split()[0])
def test_a_verb_stays_on_this_machine(
    arguments, watched, tmp_path, tiny, tiny_bundle, manifest, reference_bundle, reference_float_bundle
):
    names = {"bundle": reference_bundle, "float": reference_float_bundle, "tiny": tiny, "manifest": manifest}
    names["tiny_bundle"] = tiny_bundle
    filled = [word.format(clip=CLIP, out=tmp_path / "out", **names) for word in arguments.split()]
    python, environment, seen = watched
    soundfile.write(tmp_path / "spoken.wav", *soundfile.read(CLIP))
    with (tmp_path / "spoken.wav").open("rb") as spoken:
        done = subprocess.run(
            [*python, "-m", "prunella", *filled],
            stdin=spoken,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode in ((0, 1) if filled[0] in MAY_FAIL else (0,)), done.stderr
    assert seen() == ([], [])


@pytest.mark.skipif(os.name == "nt", reason="ended by a signal")
def test_a_server_stays_on_this_machine(watched, tmp_path, reference_bundle):
    python, environment, seen = watched
    log = tmp_path / "serve.txt"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*python, "-m", "prunella", "serve", str(reference_bundle), "--port", "0"],
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 120
            while "http://" not in log.read_text() and server.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(timeout=60)
    assert "http://" in log.read_text()
    assert seen() == ([], [])


def test_a_connection_would_be_seen(watched):
    python, environment, seen = watched
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    subprocess.run([*python, "-c", code], env=environment, capture_output=True, timeout=60)
    calls, _ = seen()
    assert any("192.0.2.1" in call for call in calls)


@pytest.mark.parametrize(
    "module", ["prunella", "prunella.benchmark.live.soak", "prunella.device_runtime.engines.onnx_engine"]
)
def test_the_switches_are_set_before_a_runtime_can_be_imported(module, watched):
    _, environment, _ = watched
    code = (
        f"import sys, os; sys.modules['onnxruntime'] = None; import {module}; "
        f"print([os.environ.get(name) for name in {SWITCHES}])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(["1"] * len(SWITCHES)), done.stderr
    # A choice that was made already stands.
    chosen = environment | {"ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=chosen, capture_output=True, text=True)
    assert done.stdout.strip() == str(["0", "1", "1"]), done.stderr
