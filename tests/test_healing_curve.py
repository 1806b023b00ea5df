"""The healing curve: arms that can be trained, one run over a tiny model, and what the page makes of the numbers."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

from prunella.speech_llm.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "research" / "healing_curve" / "results"
CLIPS = ROOT / "examples" / "clips"
SOURCE = "librivox"
CONDITIONS = {"model": "tiny", "model_weights": "c0ffee", "source": SOURCE, "clips": {"main": 4, "others": 4}, "minutes": 15, "calibration_clips": 4}  # fmt: skip


@pytest.fixture(autouse=True)
def curve_scripts(research_folder):
    research_folder("healing_curve")


def point(name, drop, errors, train=("projector",), strategy="bridged", blocks=()):
    words = [10] * len(errors)
    part = {"wer": sum(errors) / sum(words), "wer_low": 0.0, "wer_high": 1.0, "cross_entropy": 1.0}
    clips = {f"clip{i}": pair for i, pair in enumerate(zip(errors, words, strict=True))}
    return {
        "arm": {"name": name, "drop": drop, "train": list(train), "strategy": strategy}, "blocks": list(blocks), "layers": 30 - drop, "steps": 7,
        "training_minutes": 15.0, "dev": {half: {**part, "clips": clips} for half in ("main", "others", "greedy")},
    }  # fmt: skip


def cells(page, start):
    """The cells of the one table row that starts so."""
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_every_arm_has_a_name_of_its_own_and_every_question_two_arms():
    from arms import RIVAL, all_arms, questions

    arms = all_arms()
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(names)
    assert RIVAL in names
    assert {name for one in questions() for name in (one.better, one.than)} <= set(names)
    assert all(arm.drop % arm.stages == 0 for arm in arms)


def test_arms_are_compared_clip_by_clip():
    from arms import RIVAL
    from page import paired

    rival = point(RIVAL, 0, [1, 2, 3, 2])
    healed = point("9 joint", 9, [2, 3, 4, 3])
    difference = paired([rival, healed], "9 joint", RIVAL)
    assert difference.relative == pytest.approx(0.5)  # 12 errors for 8
    assert difference.low == difference.high == pytest.approx(0.1)  # each clip has one more in ten words
    assert paired([rival], "9 joint", RIVAL) is None


def test_the_page_answers_what_it_can_and_says_what_is_missing(tmp_path):
    from arms import RIVAL
    from page import write_page

    points = [
        point(RIVAL, 0, [1, 2, 3, 2]),
        point("9 bridge, joint", 9, [2, 2, 3, 2]),
        point("9 joint", 9, [3, 3, 4, 3]),
    ]
    write_page(points, CONDITIONS, tmp_path)
    page = (tmp_path / "curve.md").read_text()
    healed, asked = (section.split("##")[0] for section in page.split("## ")[1:3])
    assert cells(healed, "9 joint")[1:] == ["**+62** (+50 to +88)"] * 3
    assert cells(asked, "Bridged before training")[1:] == [
        "`9 bridge, joint` minus `9 joint`",
        *["**-10.0** (-10.0 to -10.0)"] * 3,
    ]
    assert "teacher" not in page.split("## Not made yet")[0]
    assert "9 bridge, joint, distilled" in page.split("## Not made yet")[1]


def test_a_row_says_whether_its_minutes_are_of_one_core(tmp_path):
    from page import write_page

    points = [point("9 joint", 9, [3]), {**point("6 joint", 6, [3]), "threads": 1}]
    write_page(points, CONDITIONS, tmp_path)
    rows = [line for line in (tmp_path / "curve.md").read_text().splitlines() if " joint " in line]
    assert ["15 on 1 core" in row for row in rows] == [False, True]


def test_a_trained_line_begins_at_the_uncut_model_with_the_same_training(tmp_path):
    import picture
    from arms import RIVAL
    from matplotlib import pyplot

    points = [point("full", 0, [4], train=()), point(RIVAL, 0, [3]), point("9 bridge", 9, [7], train=()), point("9 bridge, joint", 9, [5]), point("9 joint", 9, [9])]  # fmt: skip
    axes = pyplot.figure().subplots()
    picture.panel(axes, points)
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {
        "bridged, not trained": pytest.approx([40, 70]),
        "bridged and trained": pytest.approx([30, 50]),
    }
    assert "layers removed" in picture.title(points)
    shown = picture.title([*points, point("9 cut", 9, [10], train=())])
    assert "9 of 30 layers cut: 100 %" in shown and "trained: 50.0 %" in shown and shown.endswith("30.0 %")
    picture.draw(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_two_strategies_that_choose_the_same_block_are_not_compared(tmp_path):
    from page import write_page

    measured = point("9 bridge", 9, [2, 2], train=(), blocks=["2:11"])
    angular = point("9 angular, bridge", 9, [2, 2], train=(), strategy="angular", blocks=["2:11"])
    for blocks, answer in (["2:11"], "both chose 2:11"), (["3:12"], "+0.0 (+0.0 to +0.0)"):
        write_page([measured, {**angular, "blocks": blocks}], CONDITIONS, tmp_path)
        row = cells((tmp_path / "curve.md").read_text(), "A block by angular distance")
        assert row[1:3] == ["`9 angular, bridge` minus `9 bridge`", answer]


def test_the_curve_over_a_tiny_model_leaves_a_page_and_does_nothing_twice(
    small_speech_llm, tmp_path, monkeypatch, capsys
):
    import curve

    model = save_checkpoint(small_speech_llm, tmp_path / "tiny")
    arms = ["full", "3 cut", "full, same training", "3 bridge, joint, distilled"]
    chosen = []
    choose = curve.choose_blocks
    monkeypatch.setattr(curve, "choose_blocks", lambda *cut: chosen.append(cut[1:]) or choose(*cut))
    argv = ["curve.py", "--model", str(model), "--train", str(CLIPS / "calibration.jsonl")]
    argv += ["--dev", str(CLIPS / "evaluation.jsonl"), "--source", SOURCE, "--dev-clips", "2", "--other-clips", "1"]  # fmt: skip
    argv += ["--calibration-clips", "4", "--minutes", "0.02", "-o", str(tmp_path / "results")]
    argv += ["--work", str(tmp_path / "work"), *(word for arm in arms for word in ("--arm", arm))]
    monkeypatch.setattr(sys, "argv", argv)
    assert curve.main() == 0
    result = json.loads((tmp_path / "results" / "curve.json").read_text())
    points = {one["arm"]["name"]: one for one in result["points"]}
    assert list(points) == arms
    assert chosen == [(3, "bridged")]  # the same cut is not chosen twice
    assert points["3 cut"]["blocks"] == points["3 bridge, joint, distilled"]["blocks"]
    assert points["3 bridge, joint, distilled"]["layers"] == len(small_speech_llm.layers) - 3
    uncut, healed = (points[name] for name in arms[2:])
    assert healed["steps"] == healed["budget_steps"] > 0
    # A teacher as large as the uncut model, and a student that is smaller: at most 2 + 4 FLOPs a weight where it has 4.
    assert uncut["steps"] * 4 / 6 - 1 < healed["steps"] <= uncut["steps"]
    assert "clips" not in points["full"]["dev"]["main"]
    page = (tmp_path / "results" / "curve.md").read_text()
    assert all(f"| {name} " in page for name in arms)
    assert len(cells(page.split("## Against")[1], "3 bridge, joint, distilled")) == 4
    assert (tmp_path / "results" / "curve.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "arms").iterdir()}
    assert curve.main() == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "arms").iterdir()}
    monkeypatch.setattr(sys, "argv", [*argv, "--by-heart"])
    capsys.readouterr()
    assert curve.main() == 0
    losses = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in losses] == arms
    cut, trained = (losses[at].partition(": ")[2] for at in (1, 3))
    assert cut != trained
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "arms").iterdir()}
    monkeypatch.setattr(sys, "argv", [*argv, "--calibration-clips", "3"])
    with pytest.raises(SystemExit):
        curve.main()
    assert "calibration_clips 4, not 3" in capsys.readouterr().err
    other = copy.deepcopy(small_speech_llm)
    with torch.no_grad():
        next(other.projector.parameters()).mul_(1.5)
    other_model = save_checkpoint(other, tmp_path / "other")
    monkeypatch.setattr(sys, "argv", ["curve.py", "--model", str(other_model), *argv[3:]])
    with pytest.raises(SystemExit):
        curve.main()
    assert "arms of another model" in capsys.readouterr().err


def test_an_unknown_arm_is_refused_with_those_there_are(monkeypatch, capsys):
    import curve

    monkeypatch.setattr(sys, "argv", ["curve.py", "--train", "x", "--dev", "y", "--arm", "9 magic"])
    with pytest.raises(SystemExit) as stopped:
        curve.main()
    assert stopped.value.code == 2
    assert "9 bridge, joint" in capsys.readouterr().err


@pytest.fixture
def committed():
    from arms import all_arms

    order = [arm.name for arm in all_arms()]
    points = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS / "arms").glob("*.json")]
    conditions = json.loads((RESULTS / "curve.json").read_text(encoding="utf-8"))["conditions"]
    return sorted(points, key=lambda one: order.index(one["arm"]["name"])), conditions


def test_the_committed_page_is_written_from_the_committed_arms(committed, tmp_path):
    from page import write_page

    points, conditions = committed
    write_page(points, conditions, tmp_path)
    written, kept = (folder / "curve.md" for folder in (tmp_path, RESULTS))
    assert written.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")
    assert len({one["model_weights"] for one in points}) == 1
    for part in ("main", "others", "greedy"):
        heard = [{clip: words for clip, (_, words) in one["dev"][part]["clips"].items()} for one in points]
        assert all(clips == heard[0] for clips in heard)
        for one in points:
            row = one["dev"][part]
            wrong = sum(errors for errors, _ in row["clips"].values())
            assert row["wer"] == pytest.approx(wrong / sum(heard[0].values()), abs=1e-6)
            assert row["wer_low"] <= row["wer"] <= row["wer_high"]


def test_the_committed_arms_had_the_same_budget(committed):
    from arms import RIVAL

    points, conditions = committed
    assert conditions["minutes"] >= 15
    uncut = next(one for one in points if one["arm"]["name"] == RIVAL)
    for one in points:
        if "budget_steps" in one:
            assert one["steps"] == one["budget_steps"]
            assert 4 / 6 * uncut["steps"] < one["steps"] < 2 * uncut["steps"]
        elif one["arm"]["train"]:
            # A stage ends with the step that the budget ends in.
            over = one["training_minutes"] - conditions["minutes"]
            assert 0 <= over < 0.5 * one["arm"]["stages"]
        else:
            assert not one["steps"]
