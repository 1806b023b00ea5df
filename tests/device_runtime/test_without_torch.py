"""`prunella transcribe` in an environment that has the base install and the `cpu` extra, and nothing else.

`make test` creates that environment as `.venv-device`; PRUNELLA_DEVICE_PYTHON names another interpreter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.model]

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples" / "clips" / "evaluation" / "goforward.flac"


@pytest.fixture(scope="module")
def device_python() -> Path:
    named = os.environ.get("PRUNELLA_DEVICE_PYTHON")
    if named:
        return Path(named)  # what was asked for must exist: no skip
    folder = ROOT / ".venv-device"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        pytest.skip("no .venv-device: `make test` creates it")
    return python


def _run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # From another folder and without PYTHONPATH: only what is installed there can be imported.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *arguments],
        cwd=Path(python.anchor or "/"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("module", ["torch", "transformers", "onnx", "jiwer"])
def test_the_environment_lacks_the_build_side(device_python, module):
    done = _run(device_python, "-c", f"import {module}")
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr


def test_transcribe_runs_there(device_python, reference_bundle):
    done = _run(device_python, "-m", "prunella", "transcribe", str(reference_bundle), str(CLIP), "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert "forward" in row["text"].split()
    assert row["timings"]["total"] > 0


def test_info_runs_there(device_python, reference_bundle):
    done = _run(device_python, "-m", "prunella", "info", str(reference_bundle))
    assert done.returncode == 0, done.stderr
    assert "every sha256 verified" in done.stdout


def test_a_build_verb_names_its_extra(device_python):
    done = _run(device_python, "-m", "prunella", "analyze", "reference", "--speech", "x.jsonl")
    assert done.returncode == 1
    assert re.search(r"pip install .*\[build\]", done.stderr) and "Traceback" not in done.stderr
