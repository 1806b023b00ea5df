"""A release beside the others: unpacked, its runtime installed, and tried with the shipped clip. Of the standard library alone."""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher import write_launcher
from layout import Device, InstallError, say, sync_folder, take, write

_UNUSED = (
    "onnxruntime/transformers",
    "onnxruntime/tools",
    "onnxruntime/quantization",
    "numpy/f2py",
    "numpy/distutils",
)
_ILLEGAL = (-signal.SIGILL, 128 + signal.SIGILL)


def check_machine(device: Device, facts: dict[str, Any], args: argparse.Namespace) -> None:
    """Room, and what the services need. The architecture and Python were seen to before."""
    free = shutil.disk_usage(device.prefix).free
    if free < facts["installed_bytes"]:
        raise InstallError(
            f"{facts['installed_bytes'] / 1e6:.0f} MB are needed at {device.prefix}, and {free / 1e6:.0f} MB are free: free "
            "some space, or choose another --prefix"
        )
    if args.manager == "systemd" and args.service:
        if not Path("/run/systemd/system").is_dir():
            raise InstallError("systemd does not run here: give --no-systemd for a supervisor script")
        if os.geteuid():
            raise InstallError(
                "systemd units need root: run it with sudo, or give --no-systemd and a --prefix of your own"
            )


def stage(device: Device, source: Path, facts: dict[str, Any], args: argparse.Namespace) -> None:
    """Everything of the release, whole or not at all, beside the others."""
    release = str(facts["id"])
    say(f"installing {release}")
    for stale in device.releases.glob(".partial-*"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = device.releases / f".partial-{release}"
    partial.mkdir(parents=True)
    try:
        for name in facts["kept"]:
            take(source / name, partial / name, move=args.move)
        (partial / "release.json").touch()  # archives have no dates: this is when it came here
        site = partial / "site"
        wheels = source / "wheels"
        pip = next(iter(wheels.glob("pip-*.whl")))
        command = [
            sys.executable,
            str(pip / "pip"),
            "install",
            "--no-index",
            "--no-deps",
            "--require-hashes",
            "--target",
        ]
        command += [str(site), "--find-links", str(wheels), "-r", str(wheels / "requirements.txt")]
        command += [
            "--no-compile",
            "--no-warn-script-location",
            "--disable-pip-version-check",
            "--no-input",
            "-q",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PIP_CONFIG_FILE": os.devnull}
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InstallError(f"the runtime cannot be installed ({why})")
        slim(site)
        compileall.compile_dir(site, quiet=2, stripdir=partial, prependdir=device.releases / release)
        write_launcher(partial, facts["bundle"])
        os.sync()
        partial.replace(device.releases / release)
        sync_folder(device.releases)
    except OSError as error:
        raise InstallError(f"{error.filename or device.prefix}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def slim(site: Path) -> None:
    """Without what no program runs: tests, types, and converters of models. The self-test runs afterwards."""
    for folder in [*site.glob("**/tests"), *(site / name for name in _UNUSED)]:
        shutil.rmtree(folder, ignore_errors=True)
    for file in site.glob("**/*.pyi"):
        file.unlink()


def self_test(device: Device, release: str, most: float | None) -> None:
    """The shipped clip gives the expected text, soon enough; else the release is removed, and nothing has changed.

    Raises:
        InstallError: another text, too slow, or it does not run.
    """
    facts, folder = device.facts(release), device.releases / release
    test = facts["self_test"]
    clip = str(folder / test["clip"])
    say("self-test")
    # Twice: the first takes what every first one takes.
    command = [
        str(folder / "bin" / "prunella"),
        "transcribe",
        str(folder / "bundle" / facts["bundle"]),
        clip,
        clip,
        "--json",
    ]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PRUNELLA_")}
    limit = float(most or test["seconds"])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120 + 20 * limit, env=environ)
        if done.returncode in _ILLEGAL:
            raise InstallError(
                "self-test: illegal instruction: a library of the archive uses what this processor does not have; pack it for "
                "the target that this machine is"
            )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise InstallError(f"self-test: {why}")
        heard = [json.loads(line) for line in done.stdout.splitlines()]
        text, seconds = heard[-1]["text"], float(heard[-1]["timings"]["total"])
        if text not in test["texts"]:
            expected = " or ".join(map(repr, test["texts"]))
            raise InstallError(f"self-test: the clip gives {text!r}, expected {expected}")
        if seconds > limit:
            raise InstallError(
                f"self-test: the clip took {seconds:.2f} s, at most {limit:.2f} s are allowed: choose fewer layers or another "
                "recipe, or --self-test-seconds"
            )
    except (subprocess.TimeoutExpired, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        device.remove(release)
        raise InstallError(f"self-test: no transcript ({error!r})") from error
    except InstallError:
        device.remove(release)
        raise
    write(device.state / f"self-test-{release}", f"{seconds:.3f}\n")
    say(f"self-test: {text!r} in {seconds:.2f} s (at most {limit:.2f} s)")
