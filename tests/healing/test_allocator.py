from __future__ import annotations

import sys

import pytest

from prunella import cli
from prunella.healing import allocator


@pytest.fixture
def started(monkeypatch):
    calls = []
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes.util, "find_library", lambda name: f"lib{name}.so.4")
    monkeypatch.setattr(allocator.os, "execv", lambda *call: calls.append(call))
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    return calls


def test_starts_once_more_with_the_same_arguments(started, monkeypatch):
    monkeypatch.setattr(allocator.sys, "orig_argv", ["python3", "-m", "prunella", "heal", "x"])
    allocator.restart_with_tcmalloc()
    assert started == [(sys.executable, [sys.executable, "-m", "prunella", "heal", "x"])]
    assert allocator.os.environ["LD_PRELOAD"] == "libtcmalloc_minimal.so.4 libother.so"
    allocator.restart_with_tcmalloc()
    assert len(started) == 1  # it is there now


def test_leaves_the_process_alone_without_the_library(started, monkeypatch):
    monkeypatch.setattr(allocator.ctypes.util, "find_library", lambda name: None)
    allocator.restart_with_tcmalloc()
    assert not started


def test_an_environment_variable_keeps_it_from_starting_again(started, monkeypatch):
    monkeypatch.setenv(allocator.SWITCH, "0")
    allocator.restart_with_tcmalloc()
    assert not started


def test_only_the_program_starts_again(started, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        cli.main(["heal"])
    assert not started
    monkeypatch.setattr(cli.sys, "argv", ["prunella", "heal"])
    with pytest.raises(SystemExit):
        cli.main()
    assert len(started) == 1
