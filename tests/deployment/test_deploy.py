"""`prunella deploy` against a real sshd: whatever breaks, what ran keeps answering, and the next run succeeds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prunella.deployment import deploy as deploying
from prunella.deployment.archive import write_archive
from prunella.deployment.deploy import DeployOptions, Outcome, deploy
from prunella.deployment.ssh import ConnectionLostError, Host
from prunella.targets.profile import MatchRules

pytestmark = [pytest.mark.native, pytest.mark.slow]

TEXT = "go forward ten meters"  # which the fixture's bundles say, unless they are told otherwise


def run(device, archive: Path, **changes) -> Outcome:
    options = DeployOptions(prefix=str(device.prefix), systemd=False)
    return deploy(archive, device.host, replace(options, **changes), lambda line: None)


@pytest.fixture
def running(device, packed):
    """A device with a release that answers."""
    assert run(device, packed().path).ok
    assert device.heard() == TEXT
    return device


def still_answers(device, release: str) -> None:
    assert device.current() == release
    assert device.heard_soon() == TEXT


def test_a_release_is_installed_replaced_rolled_back_and_removed(device, packed):
    first, second = packed(), packed(seconds=0.2)
    outcome = run(device, first.path)
    assert outcome.ok and outcome.before == "" and "self-test: 'go forward ten meters'" in outcome.detail
    assert device.heard() == TEXT and device.current() == first.release.id
    again = run(device, first.path)
    assert again.ok and again.before == first.release.id
    assert run(device, second.path).before == first.release.id
    assert device.current() == second.release.id and device.heard() == TEXT
    said: list[str] = []
    deploying.manage(device.host, str(device.prefix), "list", said.append)
    assert [line.split()[:3] for line in said] == [
        [first.release.id, "previous", "good"],
        [second.release.id, "current", "good"],
    ]
    deploying.manage(device.host, str(device.prefix), "rollback", said.append)
    still_answers(device, first.release.id)
    third = packed(seconds=0.3)
    assert run(device, third.path, keep=0).ok
    assert [one.name for one in (device.prefix / "releases").iterdir()] == [third.release.id]
    assert not list((device.prefix / "incoming").iterdir())
    script = device.prefix / "current" / "install.sh"
    subprocess.run(["sh", script, "--uninstall", "--prefix", device.prefix], check=True, capture_output=True)
    assert device.heard() is None and [one.name for one in device.prefix.iterdir()] == ["etc"]


def test_a_copy_that_was_cut_goes_on_where_it_was(running, packed, monkeypatch):
    old, new = packed(), packed(bulk=3_000_000)
    whole = Host.copy

    def cut(self, file, path, there):
        half = file.read_bytes()[: file.stat().st_size // 2]
        (file.parent / "half").write_bytes(half)
        whole(self, file.parent / "half", path)
        raise ConnectionLostError("the copy broke off")

    monkeypatch.setattr(Host, "copy", cut)
    monkeypatch.setattr(deploying, "_COPIES", 1)
    assert not run(running, new.path).ok
    still_answers(running, old.release.id)
    monkeypatch.undo()
    said: list[str] = []
    options = DeployOptions(prefix=str(running.prefix), systemd=False)
    assert deploy(new.path, running.host, options, said.append).ok
    assert "of them are there" in said[0]
    still_answers(running, new.release.id)


def test_a_corrupt_copy_is_noticed_and_copied_again(running, packed):
    new = packed(seconds=0.2)
    # As an earlier run left it, with a bit changed on the way.
    from prunella.device_runtime.base.files import sha256

    data = bytearray(new.path.read_bytes())
    data[len(data) // 3] ^= 1
    incoming = running.prefix / "incoming"
    incoming.mkdir(exist_ok=True)
    (incoming / f"{sha256(new.path)[:32]}.part").write_bytes(data[:-100])
    said: list[str] = []
    options = DeployOptions(prefix=str(running.prefix), systemd=False)
    assert deploy(new.path, running.host, options, said.append).ok
    assert "the copy is corrupt: copying it again" in said
    still_answers(running, new.release.id)


def test_an_archive_that_was_changed_is_refused(running, packed, tmp_path):
    new = packed(seconds=0.2)
    shutil.unpack_archive(new.path, tmp_path / "changed")
    (folder,) = (tmp_path / "changed").iterdir()
    (folder / "lib" / "installer.py").write_text("print('something else')")
    write_archive(folder, tmp_path / "changed.tar.gz")
    outcome = run(running, tmp_path / "changed.tar.gz")
    assert not outcome.ok and "lib/installer.py is corrupt or missing" in outcome.detail
    (folder / "lib" / "installer.py").unlink()
    shutil.unpack_archive(new.path, tmp_path / "more")
    (more,) = (tmp_path / "more").iterdir()
    (more / "lib" / "json.py").write_text("print('something more')")
    write_archive(more, tmp_path / "more.tar.gz")
    assert "SHA256SUMS lists" in run(running, tmp_path / "more.tar.gz").detail
    still_answers(running, packed().release.id)


def test_only_a_trusted_signature_is_installed(device, packed, keys):
    by_maker, by_stranger = packed(key=keys / "maker"), packed(key=keys / "stranger", seconds=0.2)
    assert run(device, by_maker.path, trust=keys / "maker.pub").ok
    wrong = run(device, by_stranger.path)
    assert not wrong.ok and "the signature is not by a key of" in wrong.detail
    # Trust is given once: who comes later does not give it anew.
    assert not run(device, by_stranger.path, trust=keys / "stranger.pub").ok
    unsigned = run(device, packed(seconds=0.3).path)
    assert not unsigned.ok and "is not signed" in unsigned.detail
    still_answers(device, by_maker.release.id)
    assert run(device, packed(key=keys / "maker", seconds=0.4).path).ok


def test_another_architecture_is_refused_before_anything_is_copied(running, packed, target):
    other = "aarch64" if target.match.arch == ("x86_64",) else "x86_64"
    alien = packed(target=replace(target, match=MatchRules(arch=(other,), os=target.match.os)))
    outcome = run(running, alien.path)
    assert not outcome.ok and f"the archive is for {target.match.os[0]} {other}" in outcome.detail
    assert not list((running.prefix / "incoming").iterdir())
    # The archive itself refuses, too.
    folder = running.prefix.parent / "by hand"
    shutil.unpack_archive(alien.path, folder)
    script = next(folder.glob("*/install.sh"))
    done = subprocess.run(["sh", script, "--prefix", running.prefix], capture_output=True, text=True)
    assert done.returncode == 1 and f"this archive is for {other}" in done.stderr
    still_answers(running, packed().release.id)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"self_test": "go four words"}, "self-test: the clip gives 'go four words'"),
        ({"seconds": 9.5}, "self-test: the clip took 9.50 s, at most 2.00 s"),
        ({"dies": int(signal.SIGILL)}, "illegal instruction"),
        ({"serve": "something else"}, "probe: the server heard 'something else'"),
    ],
)
def test_a_release_that_does_not_work_does_not_stay(running, packed, said, why):
    bad = packed(**said)
    outcome = run(running, bad.path)
    assert not outcome.ok and why in outcome.detail, outcome
    still_answers(running, packed().release.id)
    assert not (running.prefix / "releases" / bad.release.id).exists()
    assert run(running, packed(seconds=0.5).path).ok


def test_a_full_disk_stops_nothing_that_runs(running, packed, monkeypatch):
    new = packed(bulk=3_000_000)
    seen = deploying.look(running.host, str(running.prefix), new.release.python)
    with monkeypatch.context() as patch:
        patch.setattr(deploying, "look", lambda *_: replace(seen, disk_mb=5))
        foretold = run(running, new.path)
    assert not foretold.ok and "5 MB are free" in foretold.detail
    # It may fill up on the way, too. Where no disk may be mounted, this part is not tried.
    small = running.prefix / "incoming"
    small.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], capture_output=True)
    if mounted.returncode == 0:
        try:
            outcome = run(running, new.path)
            assert not outcome.ok and "disk full" in outcome.detail, outcome
            still_answers(running, packed().release.id)
        finally:
            subprocess.run(["umount", small], check=True)
    still_answers(running, packed().release.id)
    assert run(running, new.path).ok
    still_answers(running, new.release.id)


@pytest.mark.parametrize("moment", [0.15, 0.6, 1.1, 1.6])
def test_a_deploy_that_is_killed_leaves_what_runs(running, packed, moment):
    old, new = packed(), packed(bulk=1_000_000)
    killed(running, new.path, moment)
    until = time.monotonic() + 20
    while running.heard() != TEXT:
        assert time.monotonic() < until
    assert running.current() in (old.release.id, new.release.id)
    assert run(running, new.path).ok
    still_answers(running, new.release.id)


def killed(device, archive: Path, moment: float) -> None:
    """`prunella deploy`, and SIGKILL to it and its ssh after so many seconds."""
    command = [sys.executable, "-m", "prunella", "deploy", archive, device.host.name, "--no-systemd"]
    command += ["--prefix", device.prefix, "-F", device.host.config]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_switch_that_the_power_cut_is_taken_back(running, packed):
    """Killed on the device itself, between the switch and the proof."""
    old, bad = packed(), packed(serve="something else")
    state = running.prefix / "state"
    shutil.copytree(
        running.prefix / "releases" / old.release.id, running.prefix / "releases" / bad.release.id
    )
    (state / "switching.json").write_text(json.dumps({"from": old.release.id, "to": bad.release.id}))
    (running.prefix / "current").unlink()
    (running.prefix / "current").symlink_to(f"releases/{bad.release.id}")
    new = packed(seconds=0.2)
    said: list[str] = []
    options = DeployOptions(prefix=str(running.prefix), systemd=False)
    assert deploy(new.path, running.host, options, said.append).ok
    assert f"switched back to {old.release.id}" in said
    still_answers(running, new.release.id)


def test_several_devices_have_one_table(device, packed, capsys):
    from prunella.cli import main

    nobody = "device-nobody:1"
    words = ["deploy", str(packed().path), "device", nobody, "--no-systemd", "--prefix", str(device.prefix)]
    assert main([*words, "-F", str(device.host.config)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and "installed" in out[0] and "FAILED" in out[1] and "nothing stays" in out[1]
    assert device.heard() == TEXT


def test_what_cannot_be_meant_is_refused(packed, capsys, tmp_path):
    from prunella.cli import main

    archive = str(packed().path)
    for words, why in (
        ([archive], "name the devices behind the archive"),
        ([archive, "-x@y"], "unrecognized arguments: -x@y"),
        ([str(tmp_path / "nothing.tar.gz"), "device"], "is not there: `prunella pack"),
        ([__file__, "device"], "no archive of `prunella pack`"),
        ([archive, "a b"], "is no host"),
        ([archive, "device", "--prefix", "here"], "--prefix a whole path"),
    ):
        try:
            code = main(["deploy", *words])
        except SystemExit as ended:
            code = ended.code
        assert code == 2 and why in capsys.readouterr().err, words
