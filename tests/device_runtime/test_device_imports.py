"""The device runtime is light: no torch, no transformers, and quick to import."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import prunella.device_runtime

HEAVY = ("torch", "transformers", "onnx", "scipy", "peft", "jiwer", "matplotlib")


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_no_module_of_the_runtime_brings_in_torch():
    names = [
        module.name
        for module in pkgutil.walk_packages(prunella.device_runtime.__path__, "prunella.device_runtime.")
    ]
    assert {"prunella.device_runtime.transcriber", "prunella.device_runtime.servers.http_api"} <= set(names)
    code = f"import importlib, json, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(_run(code))
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize("module", ["prunella.device_runtime", "prunella.device_runtime.transcribe"])
def test_importing_takes_under_three_times_what_numpy_takes(module):
    # A ratio within one process, since machines and moments differ; the importing thread's own processor time, since the
    # threads that numpy's OpenBLAS starts burn as much again while they wait; the best of five, since a cold disk is no fault.
    code = (
        "import time; start = time.thread_time(); import numpy; numpy_alone = time.thread_time() - start\n"
        f"import {module}; print((time.thread_time() - start) / numpy_alone)"
    )
    assert min(float(_run(code)) for _ in range(5)) < 3


def test_the_table_of_verbs_imports_no_room():
    loaded = json.loads(_run("import json, sys, prunella.cli; print(json.dumps(sorted(sys.modules)))"))
    assert not [
        name
        for name in loaded
        if name.startswith("prunella.")
        and name.count(".") == 1
        and name.split(".")[1] in ("speech_llm", "pruning", "export", "quantize", "evaluation", "build")
    ]
    assert "numpy" not in loaded


@pytest.mark.parametrize("name", prunella.device_runtime.__all__)
def test_what_every_caller_meets_is_found_at_the_top(name):
    assert getattr(prunella.device_runtime, name).__name__ == name


def test_another_name_is_refused():
    with pytest.raises(ImportError, match="nothing_here"):
        from prunella.device_runtime import nothing_here  # noqa: F401
