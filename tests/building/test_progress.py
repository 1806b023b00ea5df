"""What is said of a build's steps where nobody watches a bar."""

import pytest

from prunella.building import progress
from prunella.building.progress import Step, announced, seconds_left


@pytest.fixture
def steps(tmp_path):
    """Three steps of which the first is done; the last takes a time that is known."""

    def make(name, **more):
        path = tmp_path / name
        return Step(name, path, (), path.touch, **more)

    (tmp_path / "cutting").touch()
    return [
        make("cutting"),
        make("exporting", weight=2),
        make("judging", weight=4),
        make("healing", seconds=600),
    ]


def test_each_step_that_is_left_says_its_number_and_what_the_rest_takes(steps, monkeypatch, capsys):
    now = iter([0, 0, 100, 100, 110, 900, 2000])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now, 3000))
    for step in announced(steps):
        step.make()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 2 of 4: exporting"
    assert lines[1].startswith("step 3 of 4: judging, about ") and lines[1].endswith(" minutes left in all")
    assert lines[2] == "step 4 of 4: healing, about 10 minutes left in all"


def test_the_rest_is_estimated_by_weight(steps):
    _, exporting, judging, healing = steps
    assert seconds_left([], [exporting]) is None
    assert seconds_left([(exporting, 10.0)], [judging, healing]) == 20 + 600
    assert seconds_left([(healing, 600.0)], [judging]) is None
