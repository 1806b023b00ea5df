"""Runs that are spread over processes, killed, or out of disk."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunella.healing.run_state import read_state

pytestmark = pytest.mark.slow

JOB = [str(Path(__file__).with_name("healing_job.py"))]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def losses(path: Path) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in (line.split() for line in path.read_text().splitlines())}


@pytest.fixture(scope="module")
def one_process(manifest, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("one") / "losses"
    subprocess.run([sys.executable, *JOB, manifest, "-", path], check=True, env=ENV, timeout=120)
    return path


@pytest.mark.parametrize(("sharded", "kind"), [("0", "multi_cpu"), ("1", "fsdp")])
def test_two_processes_follow_one(manifest, one_process, sharded, kind, tmp_path):
    path = tmp_path / "losses"
    # `accelerate launch --cpu --num_processes 2` starts one process (1.15), which would follow itself.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, *JOB, manifest, "-", path], check=True, env={**ENV, "SHARDED": sharded}, timeout=180
    )
    assert sorted(one.name for one in tmp_path.glob(f"losses.{kind}.*")) == [
        f"losses.{kind}.0",
        f"losses.{kind}.1",
    ]
    expected, got = losses(one_process), losses(path)
    assert len(expected) == 20 and expected.keys() == got.keys()
    assert expected[20] < 0.8 * expected[1]
    assert max(abs(expected[step] - got[step]) for step in expected) < 1e-3
    ends = [load_file(f"{one}.safetensors") for one in (one_process, path)]
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-2) for name in ends[0])


def test_killed_run_ends_where_it_would_have(manifest, one_process, tmp_path):
    path, work = tmp_path / "losses", tmp_path / "work"
    for after in (1, 7):
        run = subprocess.Popen([sys.executable, *JOB, manifest, work, path, "0.1"], env=ENV)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            path.is_file() and len(path.read_text().splitlines()) > after
        ):
            time.sleep(0.02)
        assert run.poll() is None
        run.kill()
        run.wait()
    state = read_state(work)
    assert state is not None and 3 <= state.step < 20
    subprocess.run([sys.executable, *JOB, manifest, work, path], check=True, env=ENV, timeout=120)
    # Steps that were lost with a kill are there twice, with the same loss: the data came in the same order.
    said = [line.split() for line in path.read_text().splitlines()]
    assert len(said) > 20
    assert {step for step, _ in said} == {str(step) for step in range(1, 21)}
    assert all(losses(one_process)[int(step)] == float(loss) for step, loss in said)
    ends = [load_file(f"{one}.safetensors") for one in (one_process, path)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_full_disk_keeps_the_last_checkpoint(manifest, tmp_path):
    path, work = tmp_path / "losses", tmp_path / "work"
    run = subprocess.Popen(
        [sys.executable, *JOB, manifest, work, path, "0.2"], env=ENV, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (work / "last").is_dir():
        time.sleep(0.02)
    # No file may grow beyond 4 kB from now on: writes fail in the kernel, as on a full disk.
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (4_096, resource.RLIM_INFINITY))
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "HealingError" in errors and "is intact" in errors
    state = read_state(work)
    assert state is not None and state.step >= 3
    assert load_file(work / "last" / "trainable.safetensors")
    assert not list(work.glob(".last.partial-*"))
