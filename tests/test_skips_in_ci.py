"""What is missing fails in CI, and is skipped elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SUITE = """
import pytest
def test_runs(): pass
@pytest.mark.skipif(True, reason="no such program")
def test_program(): pass
def test_library(): pytest.importorskip("no_such_library")
def test_allowed(): pytest.skip("this machine has CUDA")
@pytest.mark.xfail(reason="known")
def test_known(): raise ValueError
"""
WHOLE = 'import pytest\npytest.importorskip("no_such_library")\ndef test_runs(): pass\n'


@pytest.mark.parametrize(
    ("ci", "suite", "counts", "status"),
    [
        (None, SUITE, ("1 passed", "3 skipped", "1 xfailed"), 0),
        ("1", SUITE, ("1 passed", "1 skipped", "1 xfailed", "1 failed", "1 error"), 1),
        (None, WHOLE, ("1 skipped",), 5),
        ("1", WHOLE, ("1 error",), 2),
    ],
)
def test_a_skip_fails_in_ci(tmp_path, ci, suite, counts, status):
    (tmp_path / "test_it.py").write_text(suite)
    environment = {key: value for key, value in os.environ.items() if key != "PRUNELLA_CI"}
    environment |= {"PYTHONPATH": str(Path(__file__).parent)} | ({"PRUNELLA_CI": ci} if ci else {})
    command = [sys.executable, "-m", "pytest", "-p", "skips_in_ci", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert all(count in done.stdout for count in counts), done.stdout
    assert done.returncode == status
    assert ("tests/skips_in_ci.py" in done.stdout) == (ci == "1")
