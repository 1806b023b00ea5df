"""A test that CI cannot run is one that nobody runs: with `PRUNELLA_CI=1`, as `.ci/run` sets it, a skip is a failure."""

from __future__ import annotations

import os

import pytest

# What is tested then is what a machine without it does.
MAY_SKIP = ("this machine has CUDA",)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _judged((yield))


def _judged(report):
    if os.environ.get("PRUNELLA_CI") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return report
    path, line, reason = report.longrepr
    if not any(allowed in reason for allowed in MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = (
            f"{path}:{line}: {reason}\nCI runs every test: let `.ci/run` or an extra of pyproject.toml install what is "
            "missing, or name the reason in tests/skips_in_ci.py"
        )
    return report
