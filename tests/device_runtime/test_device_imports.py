"""The device runtime is light: no torch, no transformers, and quick to import."""

from __future__ import annotations

import json
import pkgutil
import statistics
import subprocess
import sys

import pytest

import prunella.device_runtime

HEAVY = ("torch", "transformers", "onnx", "scipy", "peft", "jiwer", "matplotlib")


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_no_module_of_the_runtime_brings_in_torch():
    names = [
        f"prunella.device_runtime.{module.name}"
        for module in pkgutil.iter_modules(prunella.device_runtime.__path__)
    ]
    assert "prunella.device_runtime.transcriber" in names
    code = f"import importlib, json, sys\nfor name in {names!r}: importlib.import_module(name)\nprint(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(_run(code))
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize("module", ["prunella.device_runtime", "prunella.device_runtime.transcribe"])
def test_importing_takes_under_0_3_seconds(module):
    # Processor time, so that other processes on the machine do not count; the median of five, so that a cold disk does not.
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    assert statistics.median(float(_run(code)) for _ in range(5)) < 0.3


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
