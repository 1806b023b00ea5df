"""What others use of the processors and what our threads wait for, out of files as the kernel writes them."""

import os
import sys

import pytest

from prunella.device_runtime.base.cpu_load import CpuMeter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux's files")


def write(root, *, user, nice=0, idle=0, waits=None):
    """Hundredths of a second of every processor that this test may use, and of one that it may not."""
    (root / "proc").mkdir(exist_ok=True)
    lines = ["cpu  1 2 3 4 5 6 7 8 9 10"]
    lines += [f"cpu{cpu} {user} {nice} 0 {idle} 5 0 0 0 0 0" for cpu in os.sched_getaffinity(0)]
    lines += ["cpu99999 777777 0 0 0 0 0 0 0 0 0", "intr 1 2 3", "ctxt 5"]
    (root / "proc/stat").write_text("\n".join(lines) + "\n")
    for thread, nanoseconds in (waits or {}).items():
        folder = root / "proc/self/task" / thread
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"1000 {nanoseconds} 3\n")


@pytest.fixture
def used(tmp_path, monkeypatch):
    """Between two readings: what others used."""
    monkeypatch.setattr("time.process_time", lambda: 5.0)

    def between(first, second, *, niced):
        meter = CpuMeter(tmp_path, niced=niced)
        write(tmp_path, **first)
        before = meter.read()
        write(tmp_path, **second)
        return (meter.read().others - before.others) / len(os.sched_getaffinity(0))

    return between


def test_what_others_use(used):
    assert used({"user": 100, "idle": 0}, {"user": 150, "idle": 900}, niced=False) == pytest.approx(0.5)


@pytest.mark.parametrize(("niced", "counts"), [(False, 0.0), (True, 0.7)])
def test_work_that_is_niced_counts_for_who_is_niced_too(used, niced, counts):
    assert used({"user": 10, "nice": 0}, {"user": 10, "nice": 70}, niced=niced) == pytest.approx(counts)


def test_own_time_is_not_others(tmp_path, monkeypatch):
    monkeypatch.setattr("time.process_time", lambda: 5.0)
    write(tmp_path, user=100)
    meter = CpuMeter(tmp_path, niced=False)
    before = meter.read()
    monkeypatch.setattr("time.process_time", lambda: 6.0)
    write(tmp_path, user=200)
    assert meter.read().others - before.others == pytest.approx(len(os.sched_getaffinity(0)) - 1)


def test_threads_that_come_and_go(tmp_path):
    """One that has just begun brings what it had; one that has ended keeps what it waited for."""
    write(tmp_path, user=0, waits={"7": 10**9, "8": 2 * 10**9})
    meter = CpuMeter(tmp_path)
    assert meter.read().waited == 0
    write(tmp_path, user=0, waits={"7": 3 * 10**9, "9": 5 * 10**9})
    assert meter.read().waited == pytest.approx(2)
    (tmp_path / "proc/self/task/8/schedstat").unlink()
    write(tmp_path, user=0, waits={"9": 6 * 10**9})
    assert meter.read().waited == pytest.approx(3)


def test_a_system_that_tells_nothing(tmp_path):
    found = CpuMeter(tmp_path).read()
    assert (found.others, found.waited) == (None, None)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu0 a b c\n")
    assert CpuMeter(tmp_path).read().others is None


def test_this_machine():
    meter = CpuMeter()
    first, second = meter.read(), meter.read()
    assert second.at >= first.at
    if first.waited is not None:
        assert second.waited >= first.waited
