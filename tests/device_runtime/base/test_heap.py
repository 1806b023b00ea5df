"""Memory that is asked for and not written to."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from prunella.device_runtime.base.heap import lazy_zeros


def own_megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@pytest.mark.parametrize("shape", [(0, 3), (1,), (2, 3, 4)])
def test_zeros_of_any_shape_can_be_written_to(shape):
    array = lazy_zeros(shape)
    assert array.shape == shape and array.dtype == np.float32 and not array.any()
    array[:] = 1
    assert array.sum() == array.size


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_not_written_to_takes_no_memory():
    before = own_megabytes()
    array = lazy_zeros((256, 1 << 18))  # 256 MB
    array[:, 0] = 1  # a page of each row of 1 MB
    assert own_megabytes() - before < 32
    assert array[-1, 0] == 1
