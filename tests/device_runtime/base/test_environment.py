"""Options as environment variables, and what systemd is told."""

from __future__ import annotations

import os
import socket

import pytest

from prunella.cli import _arguments, verb_parser
from prunella.device_runtime.base import service_manager
from prunella.device_runtime.base.environment import unknown_variables, variable, words_of_environment
from prunella.device_runtime.base.errors import UsageError

pytest.importorskip("starlette")


@pytest.fixture
def arguments():
    return verb_parser("serve").arguments


@pytest.mark.parametrize("verb", ["serve", "listen"])
def test_every_option_is_a_variable_of_its_own(verb):
    arguments = verb_parser(verb).arguments
    names = [variable(one) for one in arguments if one.option_strings not in (["-"], ["-h", "--help"])]
    assert None not in names and len(set(names)) == len(names)
    assert {"PRUNELLA_BUNDLE", "PRUNELLA_LANGUAGE", "PRUNELLA_THREADS"} <= set(names)


def test_variables_become_words(arguments, tmp_path):
    (tmp_path / "key").write_text("secret\n")
    environ = {
        "PRUNELLA_BUNDLE": "out/pi",
        "PRUNELLA_MAX_SECONDS": "60",
        "PRUNELLA_WYOMING": "true",
        "PRUNELLA_TLS": "0",
        "PRUNELLA_STRICT": "yes",
        "PRUNELLA_ALLOW_HOST": "one.example, two.example",
        "PRUNELLA_API_KEY_FILE": str(tmp_path / "key"),
        "PRUNELLA_LANGUAGE": "",
    }
    words, positionals = words_of_environment(arguments, environ)
    assert positionals == {"bundle": "out/pi"}
    assert set(words) == {
        "--max-seconds=60",
        "--wyoming",
        "--strict",
        "--allow-host=one.example",
        "--allow-host=two.example",
        "--api-key=secret",
    }
    assert words_of_environment(arguments, {"PRUNELLA_WYOMING": "10301"})[0] == ["--wyoming=10301"]
    assert words_of_environment(arguments, {"PRUNELLA_WYOMING": "off"})[0] == []


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"PRUNELLA_PORT": "http"}, "PRUNELLA_PORT is 'http', which --port does not take"),
        ({"PRUNELLA_TLS": "maybe"}, "give 1 or 0"),
        ({"PRUNELLA_API_KEY": "a", "PRUNELLA_API_KEY_FILE": "b"}, "are both set"),
        ({"PRUNELLA_API_KEY_FILE": "/nothing/there"}, "cannot be read"),
    ],
)
def test_a_value_that_is_not_taken_is_said_by_its_variable(arguments, environ, why):
    with pytest.raises(UsageError, match=why):
        words_of_environment(arguments, environ)


def test_an_unknown_variable_is_warned_of(arguments):
    environ = {
        "PRUNELLA_PROT": "80",
        "PRUNELLA_PORT": "80",
        "PRUNELLA_CACHE": "/c",
        "PRUNELLA_API_KEY_FILE": "k",
        "PATH": "",
    }
    assert unknown_variables(arguments, environ) == [
        "the variable PRUNELLA_PROT is not known: did you mean 'PRUNELLA_PORT'?"
    ]


def test_the_command_line_wins(monkeypatch, tmp_path, capsys):
    for name in [name for name in os.environ if name.startswith("PRUNELLA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PRUNELLA_PORT", "81")
    monkeypatch.setenv("PRUNELLA_BUNDLE", str(tmp_path))
    monkeypatch.setenv("PRUNELLA_PROT", "82")
    assert _arguments("serve", []).port == 81
    assert "PRUNELLA_PROT is not known" in capsys.readouterr().err
    args = _arguments("serve", ["other", "--port", "83"])
    assert args.port == 83 and args.bundle == "other"
    assert _arguments("serve", []).bundle == str(tmp_path)
    assert _arguments("transcribe", ["x.wav"]).bundle is None  # no service: its words are its own


def test_systemd_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not service_manager.notify(service_manager.READY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        assert service_manager.notify(service_manager.READY, "STATUS=listening")
        assert receiver.recv(100) == b"READY=1\nSTATUS=listening"
        watchdog = service_manager.Watchdog()
        for _ in range(5):
            watchdog.alive()  # at once, and then not before half a second has gone
        assert receiver.recv(100) == b"WATCHDOG=1"
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
        assert service_manager.watchdog_interval() is None
