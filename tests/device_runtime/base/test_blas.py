"""Numpy's threads: none are started where a program asks for none, and a product keeps to its caller's everywhere."""

import json
import subprocess
import sys

import pytest

_CODE = """
import json, os, sys
from prunella.device_runtime.base import blas
if {early}: blas.start_alone()
import numpy as np
if not {early}: blas.start_alone()
from threadpoolctl import threadpool_info
def most(): return max((one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"), default=1)
before = most()
with blas.one_thread():
    inside = most()
    np.ones((9, 9)) @ np.ones((9, 9))
print(json.dumps([before, inside, os.environ.get("OPENBLAS_NUM_THREADS"), type(blas.one_thread()).__name__]))
"""


def _run(early: bool, monkeypatch, threads: str | None = None):
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "GOTO_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if threads is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
    code = _CODE.format(early=early)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_a_program_that_says_so_first_starts_no_threads(monkeypatch):
    before, inside, told, kind = _run(True, monkeypatch)
    assert inside == 1 and told == "1"
    if kind == "nullcontext":  # another library than OpenBLAS is limited as ever
        assert before == 1


@pytest.mark.parametrize(("early", "threads"), [(False, None), (True, "2")])
def test_too_late_or_decided_already_it_changes_nothing(monkeypatch, early, threads):
    _, inside, told, kind = _run(early, monkeypatch, threads)
    assert inside == 1 and told == threads and kind != "nullcontext"
