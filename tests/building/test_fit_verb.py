"""`prunella fit`, and `build --fit`, which does what it proposes."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from prunella.building import fit as verb
from prunella.building.build import fitted
from prunella.building.fit_choice import fit_model
from prunella.cli import main
from prunella.device_runtime.base.errors import TargetError, UsageError
from prunella.targets.compute import Compute
from prunella.targets.profile import load_target
from prunella.targets.shapes import read_shapes


def test_the_least_harm_that_keeps_both_budgets_is_proposed():
    shapes, target = read_shapes("qwen3-asr-0.6b"), load_target("raspberry-pi-5")
    report = fit_model(shapes, target)
    chosen = report.proposed
    assert chosen is not None and chosen.good and chosen.increase <= 15
    assert not [one for one in report.alternatives if one.good and one.increase < chosen.increase - 1]
    hurried = replace(target, latency=replace(target.latency, command_seconds=0.01))
    none = fit_model(shapes, hurried)
    assert none.proposed is None and none.nearest is not None and none.nearest.fits
    assert "nothing keeps both budgets" in verb.proposal(none)
    with pytest.raises(TargetError, match="fit --calibrate -o here"):
        fit_model(shapes, replace(target, compute=Compute()))
    with pytest.raises(UsageError, match="allows fp32"):
        fit_model(shapes, target, recipes=["F32"])
    with pytest.raises(UsageError, match="give 0 or more"):
        fit_model(shapes, target, max_wer_increase=-1)


def test_the_table_the_data_and_the_picture_say_the_same(tmp_path, capsys):
    picture = tmp_path / "fit.svg"
    words = ["fit", "qwen3-asr-0.6b", "--target", "raspberry-pi-5", "--layers", "28", "--layers", "20"]
    assert main([*words, "--picture", str(picture)]) == 0
    table = capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["layers"] for one in found["alternatives"]} == {20, 28}
    assert f"{found['proposed']['memory_mb']:.0f} MB" in table and "--fit --heal" in table
    drawn = picture.read_text()
    ElementTree.fromstring(drawn)
    assert "wanted: 1.5 s" in drawn and "proposed: 20 layers" in drawn
    assert main(
        [*words, "--vocabulary", "20000", "--recipe", "int8", "--max-wer-increase", "1", "--markdown"]
    ) in (0, 1)
    assert capsys.readouterr().out.count("int8 |") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a model"),
        (["reference"], "name a --target"),
        (["reference", "--target", "x86-cpu", "--seconds", "0"], "more than 0"),
        (["refrence", "--target", "raspberry-pi-5"], "did you mean 'reference'"),
    ],
)
def test_mistakes_are_said_in_a_line(words, said, capsys):
    assert main(["fit", *words]) == 2
    assert said in capsys.readouterr().err


def test_this_machine_becomes_a_target(tmp_path, monkeypatch, capsys):
    known = load_target("raspberry-pi-5").compute
    monkeypatch.setattr(verb, "measure_ceilings", lambda threads, kernels: known)
    path = tmp_path / "here.toml"
    assert main(["fit", "--calibrate", "--threads", "1", "-o", str(path)]) == 0
    assert load_target(path).compute.gb_per_s == known.gb_per_s
    capsys.readouterr()
    assert main(["fit", "reference", "--target", str(path), "--recipe", "int4"]) == 0
    assert "on here" in capsys.readouterr().out
    assert main(["fit", "reference", "--calibrate", "--threads", "1", "--recipe", "int4"]) == 0
    captured = capsys.readouterr()
    assert "this machine (x86-cpu)" in captured.out and "[compute.rates]" in captured.err


def test_what_is_proposed_can_be_built(tmp_path, capsys):
    body = json.loads(
        (verb.Path(sys.modules[read_shapes.__module__].KNOWN) / "qwen3-asr-0.6b.json").read_text()
    )
    (tmp_path / "config.json").write_text(json.dumps(body["config"]))
    drop, recipe = fitted(str(tmp_path), "raspberry-pi-5")
    assert 0 < drop < 12 and recipe in load_target("raspberry-pi-5").recipes
    assert "proposed:" in capsys.readouterr().err
    with pytest.raises(UsageError, match="nothing keeps both budgets"):
        fitted(str(tmp_path), "raspberry-pi-4", 0.0)
    with pytest.raises(UsageError, match="nothing need be cut"):
        fitted(str(tmp_path), "cuda-desktop")
