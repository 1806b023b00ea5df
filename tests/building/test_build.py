import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from prunella import targets
from prunella.benchmark import compare
from prunella.building import build_steps
from prunella.building.artifacts import Artifacts
from prunella.building.build import build, healed_blocks
from prunella.building.build_plan import BuildPlan, claim_folder
from prunella.building.build_steps import Build
from prunella.cli import main
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.bundle import open_bundle
from prunella.evaluation.manifest import read_manifest
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune
from prunella.speech_llm.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow


BUILD = ["build", "MODEL", "--target", "x86-cpu", "--drop", "1"]


@pytest.fixture(scope="module")
def plan(small_speech_llm, noise_manifest, tmp_path_factory) -> BuildPlan:
    folder = save_checkpoint(small_speech_llm, tmp_path_factory.mktemp("model") / "tiny")
    speech = str(noise_manifest)
    return BuildPlan(str(folder), "x86-cpu", speech, speech, drop=2, baseline=False)


@pytest.fixture(scope="module")
def built(plan, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("build") / "out"
    build(plan, out)
    return out


def test_a_build_ends_in_bundles_and_a_table(built):
    rows = json.loads((built / "report.json").read_text())["rows"]
    assert [row["layers"] for row in rows] == [6, 4, 4, 6, 6, 6, 4, 4, 4]
    assert all(
        row["cross_entropy"] > 0 and row["peak_memory_bytes"] > 0 and row["disk_bytes"] > 0 for row in rows
    )
    sizes = {row["name"]: row["disk_bytes"] for row in rows}
    assert sizes["pruned, ONNX int4"] < sizes["pruned, ONNX int8"] < sizes["full, ONNX fp32"]
    assert open_bundle(built / "pruned-int4").manifest.decoder.num_layers == 4
    assert (built / "report.md").read_text().count("\n|") == 10


def test_a_build_for_llama_cpp(plan, tmp_path, caplog):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    profile = tmp_path / "small.toml"
    recipes = ["F16", "Q8_0", "Q4_K_M", "Q4_0"]
    profile.write_text(
        f'name = "small"\ndescription = "for a test"\nengines = ["gguf", "onnx"]\n'
        f'recipe = "Q4_K_M"\nrecipes = {json.dumps(recipes)}\n'
    )
    whole = Build(replace(plan, target=str(profile)), tmp_path / "out")
    assert "Q4_K_M, the recipe of small, becomes Q4_0" in caplog.text
    assert whole.recipes.asked == "Q4_0"  # the model's rows are too narrow for Q4_K_M
    assert whole.recipes.all == ("F16", "Q8_0", "Q4_0")
    assert ("pruned-gguf-q4_0", "pruned, GGUF Q4_0") in [(one.id, one.name) for one in whole.entries()]
    for step in whole.steps():
        if step.name in ("exporting full as F16", "exporting full as Q4_0"):
            step.make()
            assert open_bundle(step.artefact).manifest.engines == ("gguf",)


def test_a_build_that_cuts_tokens_and_heals_exports_what_was_healed(plan, tmp_path):
    out, texts = tmp_path / "out", tmp_path / "said.txt"
    texts.write_text("the quick brown fox\n")
    healing = replace(plan, heal_minutes=0.02, keep_vocabulary=(str(texts),))
    report = build(healing, out)
    names = [row.name for row in report.rows]
    tokens = {row.name: row.vocabulary for row in report.rows}
    kept = json.loads((out / "pruned" / "pruning.json").read_text())["vocabulary"]["tokens_after"]
    assert kept < tokens["full, PyTorch"] == tokens["full, ONNX int4"] == tokens["cut, PyTorch"]
    assert tokens["pruned, PyTorch"] == tokens["healed, PyTorch"] == tokens["pruned, ONNX int4"] == kept
    assert names.index("healed, PyTorch") == names.index("pruned, PyTorch") + 1
    healed, pruned = load_checkpoint(out / "healed"), load_checkpoint(out / "pruned")
    assert healed.config.provenance["healing"][-1]["steps"] >= 1
    assert not torch.equal(
        healed.projector.state_dict()["linear_1.weight"], pruned.projector.state_dict()["linear_1.weight"]
    )
    shipped = open_bundle(report.bundle).manifest.provenance
    assert shipped["healing"] == healed.config.provenance["healing"]
    # More minutes are the same build; without healing it is another.
    build(replace(healing, heal_minutes=0.03), out)
    with pytest.raises(UsageError, match="another build"):
        build(plan, out)


def test_a_build_shows_the_cut_that_a_healed_model_came_from(plan, tmp_path):
    pruned, _ = prune(load_checkpoint(plan.model), [Block(1, 3)])
    pruned.decoder.model.norm.weight.data.mul_(4)  # in place of healing: sharper logits, another loss
    healed = save_checkpoint(pruned, tmp_path / "healed")
    blocks = healed_blocks(plan.model, str(healed))
    assert blocks == ("1:3",)
    out = tmp_path / "out"
    report = build(replace(plan, drop=None, blocks=blocks, healed=str(healed)), out)
    names = [row.name for row in report.rows]
    assert names[:4] == ["full, PyTorch", "cut, PyTorch", "pruned, PyTorch", "healed, PyTorch"]
    losses = {row.name: row.cross_entropy for row in report.rows}
    assert losses["pruned, ONNX fp32"] == pytest.approx(losses["healed, PyTorch"], rel=1e-3)
    assert losses["pruned, ONNX fp32"] != pytest.approx(losses["pruned, PyTorch"], rel=1e-2)
    assert not (out / "healed").exists()


def test_every_step_needs_only_what_is_there_before_it(plan, tmp_path):
    for variant in (plan, replace(plan, heal_minutes=1.0), replace(plan, healed=plan.model, baseline=True)):
        there = {Path(plan.model)}
        steps = Build(variant, tmp_path / "out").steps()
        for step in steps:
            assert set(step.needs) <= there, step.name
            there.add(step.artefact)
        assert len(there) == len(steps) + 1  # no artefact is made twice


def test_a_folder_of_an_earlier_prunella_goes_on(plan, tmp_path, monkeypatch):
    """Names that a release wrote: whoever changes them makes its unfinished builds begin anew."""
    begun = replace(plan, heal_minutes=1.0, baseline=True)
    out = tmp_path / "out"
    claim_folder(begun, Artifacts(out))
    known = json.loads((out / "plan.json").read_text())
    assert known["plan"] == json.loads(json.dumps(asdict(begun)))
    assert list(known["decisions"]) == [
        "the model", "--healed", "--target", "the target's profile", "--drop", "--keep", "--block", "--strategy",
        "--no-bridge", "--clips", "--heal", "--calibration", "--evaluation", "--text", "prunella",
    ]  # fmt: skip
    rows = [
        "full-pytorch", "cut-pytorch", "pruned-pytorch", "healed-pytorch", "full-onnx-fp32", "full-onnx-int8", "full-onnx-int4",
        "pruned-onnx-fp32", "pruned-onnx-int8", "pruned-onnx-int4", "whisper-tiny.en-own-decoder-int8",
    ]  # fmt: skip
    made = [
        "redundancy/redundancy.json", "pruned", "cut", "healed", "full-fp32", "full-int8", "full-int4", "pruned-fp32",
        "pruned-int8", "pruned-int4", *(f"rows/{row}.json" for row in rows),
    ]  # fmt: skip
    assert [str(step.artefact.relative_to(out)) for step in Build(begun, out).steps()] == made
    row = {"name": "x", "layers": 6, "disk_bytes": 1, "cross_entropy": 1.0, "wer": 0.1, "wer_low": 0.0, "wer_high": 0.2,
           "real_time_factor": 0.1, "decode_tokens_per_second": None, "peak_memory_bytes": 1}  # fmt: skip
    for name in made:
        if name.endswith(".json"):
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text(json.dumps(row))
        else:
            (out / name).mkdir()
    monkeypatch.setattr(build_steps, "load", lambda name: pytest.fail(f"{name} was loaded for nothing"))
    assert len(build(begun, out).rows) == len(rows)


def test_the_same_build_again_does_nothing(plan, built):
    before = {
        path: path.stat().st_mtime_ns
        for path in built.rglob("*")
        if path.name not in ("report.json", "report.md")
    }
    build(plan, built)
    after = {path: path.stat().st_mtime_ns for path in before}
    changed = [path for path in before if before[path] != after[path] and path.is_file()]
    assert changed == []


def test_another_build_does_not_mix_in(plan, built, tmp_path):
    with pytest.raises(UsageError, match="another build"):
        build(replace(plan, drop=1), built)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        build(plan, tmp_path)


def test_a_resume_may_leave_rows_out_and_a_difference_is_named(plan, built, tmp_path):
    for same in (replace(plan, baseline=True), replace(plan, calibration=os.path.relpath(plan.calibration))):
        claim_folder(same, Artifacts(built))
    profile = tmp_path / "x86-cpu.toml"
    profile.write_text((Path(targets.__file__).parent / "x86-cpu.toml").read_text())
    claim_folder(replace(plan, target=str(profile)), Artifacts(built))  # the same profile by another name
    profile.write_text(profile.read_text() + "\n[precision]\nhead = 'float'\n")
    speech = tmp_path / "speech.jsonl"
    speech.write_text(Path(plan.evaluation).read_text() + "\n")
    for change, said in (
        ({"drop": 1}, r"\(--drop 2 there, 1 now\)"),
        ({"drop": None, "keep": 0.5}, "--drop 2 there, none now; --keep none there, 0.5 now"),
        ({"bridge": False}, "--no-bridge now, not there"),
        ({"heal_minutes": 1.0}, "--heal now, not there"),
        ({"target": "raspberry-pi-5"}, "--target x86-cpu there, raspberry-pi-5 now"),
        ({"target": str(profile)}, r"\(the target's profile\)"),
        ({"evaluation": str(speech)}, r"\(the content of --evaluation\)"),
        ({"text": str(speech)}, "--text none there, a file now"),
    ):
        with pytest.raises(UsageError, match=said):
            claim_folder(replace(plan, **change), Artifacts(built))


def test_a_cut_is_never_named_like_the_model_that_it_was_cut_from(plan, built):
    full = Path(plan.model).name
    (block,) = json.loads((built / "pruned" / "pruning.json").read_text())["blocks"]
    names = [open_bundle(built / folder).manifest.name for folder in ("full-int4", "pruned-int4")]
    assert names == [full, f"{full}-cut-{block}"]
    again, _ = prune(load_checkpoint(built / "pruned"), [Block(0, 1)])
    assert again.config.provenance["name"].endswith(f"-cut-{block}-cut-0:1")


def test_a_table_for_another_machine_says_so_and_misses_no_hardware(plan, tmp_path, caplog):
    text = (
        'name = "board"\ndescription = "for a test"\nengines = ["onnx"]\nrecipe = "fp32"\nrecipes = ["fp32"]\n'
        'providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]\n[match]\n'
    )
    here, elsewhere = tmp_path / "here.toml", tmp_path / "elsewhere.toml"
    here.write_text(text + f'os = ["{platform.system()}"]\n')
    elsewhere.write_text(text + 'os = ["Plan9"]\n')
    assert Build(replace(plan, target=str(here)), tmp_path / "a").heading == ""
    bundle = str(tmp_path / "out" / "full-fp32")

    class OneRow(Build):
        def entries(self):
            return [one for one in super().entries() if one.system == bundle]

        def steps(self):
            wanted = ("exporting full as fp32", "evaluating full, ONNX fp32")
            return [step for step in super().steps() if step.name in wanted]

    report = OneRow(replace(plan, target=str(elsewhere)), tmp_path / "out").run()
    assert "which is no board" in report.heading
    assert (tmp_path / "out" / "report.md").read_text().startswith(report.heading)
    assert "is not used" not in caplog.text
    for _ in range(2):  # said where it is run, once
        compare.measure([bundle, bundle], read_manifest(plan.evaluation).select(limit=1), repeat=1)
    said = [record for record in caplog.records if "CUDAExecutionProvider is not used" in record.getMessage()]
    assert len(said) == 1


def test_a_killed_build_goes_on(plan, built, tmp_path):
    """`kill -9` in the middle: nothing that looks complete is not, and the same command finishes."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "prunella", "build", plan.model, "--target", "x86-cpu", "--drop", "2",
               "--calibration", plan.calibration, "--evaluation", plan.evaluation, "--no-baseline", "-o", str(out)]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (out / "full-fp32").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (out / "full-fp32").exists() and not (out / "report.json").exists()
    for folder in out.iterdir():
        if (folder / "bundle.json").exists():
            open_bundle(folder)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pruned, ONNX int4" in done.stdout
    assert not [path for path in out.iterdir() if ".partial" in path.name or ".float" in path.name]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "MODEL", "--target", "x86", "--drop", "2"], 2, "did you mean 'x86-cpu'"),
        (["build", "MODEL", "--target", "x86-cpu", "--drop", "6"], 2, "drop 1 to 5"),
        (["build", "MODEL", "--target", "x86-cpu", "--block", "4:9"], 2, "no layer 8"),
        (["build", "MODEL", "--target", "x86-cpu", "--healed", "MODEL"], 2, "was not cut from"),
        (["build", "MODEL", "--target", "x86-cpu", "--healed", "MODEL", "--heal"], 2, "leave out --heal"),
        (["build", "/no/where", "--target", "x86-cpu", "--drop", "1"], 1, "neither a folder"),
        ([*BUILD, "--evaluation", "nope.jsonl"], 1, "manifest nope.jsonl does not exist"),
        ([*BUILD, "--text", "nope.txt"], 2, "cannot read the text nope.txt"),
        ([*BUILD, "--clips", "0"], 2, "a sample of 0 clips leaves nothing"),
        ([*BUILD, "--heal", "--heal-speech", "nope.jsonl"], 1, "manifest nope.jsonl does not exist"),
        (["buidl"], 2, "did you mean 'build'"),
        (["export", "MODEL", "--target", "jetson", "-o", "OUT"], 2, "prunella targets list"),
        (["transcribe", "OUT", "clip.wav"], 1, "does not exist"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(plan, tmp_path, capsys, arguments, code, message):
    out = tmp_path / "out"
    words = [{"MODEL": plan.model, "OUT": str(out)}.get(word, word) for word in arguments]
    if words[0] == "build":
        words += ["-o", str(out)]
    assert main(words) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert not out.exists()
