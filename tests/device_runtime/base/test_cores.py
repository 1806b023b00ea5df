"""Cores are counted as engines can use them: hyper-threads once, Apple's cores whole, a container's quota respected."""

import os
import sys

import pytest

from prunella.device_runtime.base.cores import (
    cgroup_quota,
    check_threads,
    count_cores,
    physical_cores,
    usable_cpus,
)
from prunella.device_runtime.base.errors import UsageError


@pytest.mark.parametrize(
    ("facts", "cores"),
    [
        ({"core_of": {0: "0/0", 1: "0/0", 2: "0/1", 3: "0/1"}}, 2),  # hyper-threads
        ({"core_of": {0: "0/0", 1: "1/0"}}, 2),  # two sockets whose cores have the same number
        ({"core_of": {4: None, 5: None, 6: None}}, 3),  # a kernel without topology
        ({"core_of": {0: "0/0", 1: "0/1", 2: "0/2", 3: "0/3"}, "quota": 2.0}, 2),
        ({"core_of": {0: "0/0", 1: "0/1", 2: "0/2", 3: "0/3"}, "quota": 2.7}, 2),
        ({"core_of": {0: "0/0", 1: "0/1"}, "quota": 0.5}, 1),
        ({"core_of": {0: "0/0"}, "quota": 8.0}, 1),  # affinity is the narrower one
        ({"physical": 8, "logical": 8}, 8),  # Apple Silicon: no hyper-threads
        ({"physical": 4, "logical": 8}, 4),  # an Intel Mac, Windows
        ({"physical": None, "logical": 6}, 6),
        ({}, 1),
    ],
)
def test_cores(facts, cores):
    assert count_cores(**facts) == cores


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
            },
            2.0,
        ),
        # the host's path, seen from inside a container: the limit is at the root of what is mounted
        (
            {"proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/cpu.max": "50000 100000"},
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:memory:/x\n4:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_the_quota_of_a_cgroup(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_quota(tmp_path) == quota


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's affinity")
@pytest.mark.parametrize(
    ("allowed", "isolated", "usable"),
    [
        ({0, 1, 2, 3}, "", {0, 1, 2, 3}),
        ({0, 1, 2, 3}, "2-3", {0, 1}),
        ({0, 1, 4, 5, 6}, "1,4-5,7", {0, 6}),
        ({2, 3}, "2-3", {2}),  # nothing moves threads between them
    ],
)
def test_processors_that_are_isolated(tmp_path, monkeypatch, allowed, isolated, usable):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: allowed)
    (tmp_path / "isolated").write_text(isolated + "\n")
    assert usable_cpus(tmp_path / "isolated") == usable
    assert usable_cpus(tmp_path / "none") == allowed


def test_this_machine():
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


def test_threads_that_no_machine_has_are_refused():
    for threads in (None, 0, 1, os.cpu_count()):
        check_threads(threads)
    for threads in (-1, 4 * (os.cpu_count() or 1) + 1, 10**6):
        with pytest.raises(UsageError, match=f"{threads} threads are not possible"):
            check_threads(threads)
