"""The server's own certificate: one file that is whole, nobody else's, and belongs to its key."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from prunella.cli import main
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.servers import tls

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and fork are POSIX")

# Kills a process at the n-th thing it does to a file, for every n, and looks at what it left.
KILLS = """
import os, signal, stat, sys
from pathlib import Path
from prunella.device_runtime.servers import tls

folder, before = Path(sys.argv[1]), sys.argv[2:]
os.umask(0)
counted = ("open", "os.rename", "os.remove", "os.chmod", "os.link")
for number in range(1, 1000):
    for file in folder.iterdir():
        file.unlink()
    if before:
        tls.self_signed(folder, ())
    child = os.fork()
    if not child:
        left = number
        def hook(event, arguments):
            global left
            if event in counted and str(folder) in str(arguments[0]):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        tls.self_signed(folder, ("new.example",))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    for file in folder.iterdir():
        if b"PRIVATE" in file.read_bytes():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
    certificate, key, _ = tls.self_signed(folder, ("new.example",))
    tls.server_context(key, key)
    assert certificate.read_bytes() in key.read_bytes()
    if not status:
        break
    assert os.WIFSIGNALED(status), status
print(number)
"""


@posix
@pytest.mark.parametrize("before", [(), ("an older pair",)])
def test_a_kill_at_any_moment_leaves_a_pair_or_none_and_never_a_readable_key(tmp_path, before):
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), *before], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 4


def _key_and_certificate(folder: Path) -> tuple[object, x509.Certificate]:
    pem = (folder / "key.pem").read_bytes()
    return serialization.load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)


def test_it_is_kept_while_it_serves(tmp_path):
    first = tls.self_signed(tmp_path, ("a.example",))
    assert tls.self_signed(tmp_path, ("a.example",)) == first
    assert tls.self_signed(tmp_path) == first  # it covers more than is asked for
    assert tls.self_signed(tmp_path, ("b.example",))[2] != first[2]


def test_what_does_not_belong_together_is_made_anew(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        tls.self_signed(folder)
    mixed = (here / "key.pem").read_bytes().split(b"-----BEGIN CERT")[0] + (
        there / "certificate.pem"
    ).read_bytes()
    (here / "key.pem").write_bytes(mixed)
    certificate, key, _ = tls.self_signed(here)
    tls.server_context(key, key)
    private, signed = _key_and_certificate(here)
    assert private.public_key() == signed.public_key()
    assert certificate.read_bytes() in key.read_bytes()


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    _, key, _ = tls.self_signed(tmp_path)
    key.write_bytes(damage)
    tls.server_context(tls.self_signed(tmp_path)[1], key)


@posix
def test_a_key_that_others_could_read_is_not_used_again(tmp_path):
    _, key, fingerprint = tls.self_signed(tmp_path)
    key.chmod(0o640)
    assert tls.self_signed(tmp_path)[2] != fingerprint
    assert key.stat().st_mode & 0o077 == 0


def test_one_that_ends_soon_is_made_anew(tmp_path, monkeypatch):
    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=395)

    first = tls.self_signed(tmp_path)[2]
    monkeypatch.setattr(tls.datetime, "datetime", Later)
    assert tls.self_signed(tmp_path)[2] != first


@pytest.mark.parametrize("name", ["bücher.example", "::1", "[fe80::1%eth0]", "192.0.2.7", "Prunella.Home."])
def test_names_as_people_write_them_are_covered_once_for_all(tmp_path, name):
    assert tls.self_signed(tmp_path, (name,)) == tls.self_signed(tmp_path, (name,))


@pytest.mark.parametrize("name", ["", "a b", "a..b", "x" * 64, "http://x", "\udcff"])
def test_what_is_no_name_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="no name of a host"):
        tls.self_signed(tmp_path, (name,))


def test_a_pair_of_ones_own_is_checked(tmp_path):
    _, here, _ = tls.self_signed(tmp_path / "here")
    certificate, _, _ = tls.self_signed(tmp_path / "there")
    private, _ = _key_and_certificate(tmp_path / "here")
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert isinstance(tls.server_context(here, here), ssl.SSLContext)
    for pair in ((certificate, here), (here, certificate), (here, locked), (here, tmp_path)):
        with pytest.raises(UsageError):
            tls.server_context(*pair)


def _no_entry(uid):
    raise KeyError(uid)


@posix
@pytest.mark.parametrize("home", [None, "/dev/null", "/proc"])
@pytest.mark.parametrize("cache", [None, "/proc/nothing", "~no-such-user/x", "~/x"])
def test_without_a_home_the_certificate_is_for_this_run(tmp_path, monkeypatch, capsys, home, cache):
    monkeypatch.setattr("pwd.getpwuid", _no_entry)
    monkeypatch.setattr("pwd.getpwnam", _no_entry)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, value in (("HOME", home), ("PRUNELLA_CACHE", cache), ("XDG_CACHE_HOME", None)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert main(["serve", str(tmp_path / "no-bundle"), "--port", "0", "--tls"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert "PRUNELLA_CACHE" in told[0] and "--certificate" in told[0]
    assert "not kept, SHA-256" in told[1]
    assert "no-bundle" in told[2]
    assert not list(tmp_path.iterdir())


def test_without_any_folder_for_recordings_nothing_is_begun(tmp_path, monkeypatch, capsys):
    def nowhere():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    assert main(["serve", str(tmp_path / "no-bundle"), "--port", "0"]) == 2
    assert "TMPDIR" in capsys.readouterr().err


def test_a_certificate_of_ones_own_is_looked_at_before_the_model(tmp_path, capsys):
    certificate, key, _ = tls.self_signed(tmp_path / "a")
    other = tls.self_signed(tmp_path / "b")[1]
    words = ["serve", str(tmp_path / "no-bundle"), "--port", "0", "--certificate", str(certificate)]
    assert main([*words, "--key", str(other)]) == 2
    assert "no certificate and its key" in capsys.readouterr().err
    assert main([*words, "--key", str(key)]) == 1
    assert "no-bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    "host", ["", " ", "nosuch.invalid", "192.0.2.1", "2001:db8::1", "a" * 70, "a..b", "host:80"]
)
def test_a_wrong_host_is_said_to_be_the_host(tmp_path, capsys, host):
    assert main(["serve", str(tmp_path / "no-bundle"), "--port", "0", "--host", host]) == 2
    told = capsys.readouterr().err
    assert "--host" in told and "--port" not in told and "127.0.0.1" in told


@pytest.mark.parametrize("option", ["--port", "--wyoming"])
def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(tmp_path, capsys, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ["--port", "0"] if option == "--wyoming" else []
        assert main(["serve", str(tmp_path / "no-bundle"), *words, option, port]) == 1
    told = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in told and f"choose another {option}" in told
