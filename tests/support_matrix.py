"""What the tests say of every family and step, for the table in `docs/families.md` (written by `docs/support_matrix.py`).

A test marked `@pytest.mark.step(NAME, ...)` speaks of the family in its parameters, or of `family=` in the mark. A step is
supported where all its tests passed; where one is expected to fail, its reason says what keeps it from working.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "support_matrix.json"
STEPS = (
    *("recognise", "analyze", "cut", "vocabulary", "bridge", "heal", "CTC head", "stock reload"),
    *("ONNX gate", "GGUF decoder", "mmproj", "transcribe", "language", "verify"),
)
_KNOWN = {path.stem for path in (ROOT / "speech_llm" / "families").glob("*.py")}
Outcomes = dict[str, dict[str, str]]
collected = pytest.StashKey[Outcomes]()


def spoken_of(item: pytest.Item) -> Iterator[tuple[str, str]]:
    """The families and steps that a test speaks of."""
    parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
    for mark in item.iter_markers("step"):
        families = (
            [mark.kwargs["family"]] if "family" in mark.kwargs else [p for p in parameters if p in _KNOWN]
        )
        assert families, f"{item.nodeid}: the mark `step` wants a family"
        for step in mark.args:
            assert step in STEPS, f"{item.nodeid}: no step '{step}': there are {', '.join(STEPS)}"
            for family in families:
                yield family, step


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compares the page with this run's results goes last."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[collected] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.when == "call" or report.outcome != "passed":
        for family, step in spoken_of(item):
            cells = item.config.stash[collected].setdefault(family, {})
            cells[step] = _worse(cells.get(step, "yes"), _said(report))
    return report


def _said(report: pytest.TestReport) -> str:
    if report.outcome == "passed":
        return "yes"
    if report.skipped:
        expected = getattr(report, "wasxfail", None)
        if expected is not None:
            return f"no: {expected.removeprefix('reason: ')}"
        return "skipped"
    return "failed"


def _worse(one: str, other: str) -> str:
    """Of two tests of a step: what failed is known, then what is expected to; what was skipped says nothing."""
    order = ("failed", "skipped", "no", "yes")
    return min(one, other, key=lambda said: order.index(said.partition(":")[0]))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was seen over what earlier sessions saw."""
    seen = session.config.stash.get(collected, {})
    if not seen:
        return
    before: Outcomes = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for family, cells in seen.items():
        before.setdefault(family, {}).update(cells)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(before, indent=2, sort_keys=True) + "\n")
