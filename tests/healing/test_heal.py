from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel

from prunella.device_runtime.base.errors import ManifestError, UsageError
from prunella.evaluation.manifest import read_manifest
from prunella.evaluation.word_errors import count_errors
from prunella.healing import heal as verb
from prunella.healing import training_speed as machine
from prunella.healing.adapters import TrainableDecoder, lora_layers
from prunella.healing.clips import open_speech, tokenize
from prunella.healing.dev_set import DevScore, DevSet
from prunella.healing.features import FeatureStore
from prunella.healing.heal import heal
from prunella.healing.learner import Learner
from prunella.healing.pass_inputs import pass_inputs
from prunella.healing.plan import Augmentation, HealingError, HealingPlan
from prunella.healing.run_state import read_state
from prunella.healing.training_speed import choose_compile
from prunella.speech_llm.batches import batch_loss, speech_batch, speech_example
from prunella.speech_llm.checkpoint import load_checkpoint, save_checkpoint
from prunella.speech_llm.ctc_head import ENGLISH
from prunella.speech_llm.torch_engine import model_transcriber

pytestmark = pytest.mark.slow

PLAIN = Augmentation.none()
PLAN = HealingPlan(
    steps=3, rank=4, precision="fp32", batch_positions=300, micro_positions=150, augmentation=PLAIN
)


def inputs_of(model, clips, *, encode=True):
    rows = tokenize(model, clips)
    store = FeatureStore(model, rows, PLAIN, 0, encode=encode)
    ready = [store.pass_clip(i, store.finish(store.load(i, 0), i, 0)) for i in range(len(rows))]
    return pass_inputs(model, ready, encoded=encode)


@pytest.mark.parametrize("parts", [("projector", "decoder"), ("projector", "decoder", "encoder")])
def test_loss_is_that_of_the_model(model, manifest, parts):
    batch = speech_batch(
        model, [speech_example(model, row) for row in read_manifest(manifest).utterances[:5]]
    )
    expected, tokens = batch_loss(model.decoder, batch)
    inputs = inputs_of(model, open_speech([manifest])[:5], encode="encoder" not in parts)
    loss = float(Learner(model, replace(PLAN, train=parts))(inputs)[0])
    assert loss == pytest.approx(expected, rel=2e-3)  # features are kept in float16
    assert int((inputs.labels >= 0).sum()) == tokens


def test_filler_weighs_nothing(model, manifest):
    clips = open_speech([manifest])[:3]
    learner = Learner(model, PLAN)
    one = inputs_of(model, clips)
    rest = inputs_of(model, clips[:2])
    dropped = replace(one, weights=torch.tensor([1.0, 1.0, 0.0]))
    assert torch.allclose(learner(dropped), learner(rest), rtol=1e-4)


def test_dev_texts_are_the_transcribers(manifest, make_model):
    model = make_model(seed=3)
    clips = open_speech([manifest])[:6]
    learner = Learner(model, PLAN).eval()
    store = FeatureStore(model, tokenize(model, clips), PLAIN, 0, encode=True)
    texts = DevSet(model, store, 400).transcribe(learner, inputs_of(model, clips))
    # Tones are not speech, but these models hear words in them.
    transcriber = model_transcriber(model, replace(model.config.decode, speech_probability=0.0))
    expected = [transcriber.transcribe(clip.read()).text for clip in clips]
    assert any(expected)
    assert texts == expected


@pytest.mark.step("CTC head", family="ultravox")
def test_a_ctc_head_learns_to_spell_and_the_rest_stays(manifest, tmp_path, make_model):
    clips = open_speech([manifest])
    plan = replace(PLAN, stage="ctc-head", steps=120, dev_steps=20, batch_positions=400)
    before = {name: tensor.clone() for name, tensor in make_model().state_dict().items()}
    model = heal(make_model(), plan, clips, dev=clips, work=tmp_path / "work")
    assert model.config.ctc_alphabet == ENGLISH
    history = read_state(tmp_path / "work").history
    assert history[-1]["dev_loss"] < 0.5 * np.log(1 + len(ENGLISH))
    for name, tensor in model.state_dict().items():
        assert name.startswith("ctc_head.") or torch.equal(tensor, before[name]), name
    # A stopped run goes on: it is known by the weights that it began with, which are the seed's.
    longer = heal(make_model(), replace(plan, steps=122), clips, dev=clips, work=tmp_path / "work")
    assert read_state(tmp_path / "work").step == 122
    assert longer.ctc_head is not None


@pytest.mark.parametrize(("stage", "best"), [("ctc-head", 2), ("ctc", 1)])
def test_a_ctc_head_is_chosen_by_its_loss_and_anything_else_by_words(
    manifest, tmp_path, make_model, monkeypatch, stage, best
):
    words = [count_errors("a b", text).words for text in ("a b", "a c")]
    scores = iter([DevScore(words[0], 9.0, 2), DevScore(words[1], 1.0, 2)])
    monkeypatch.setattr(DevSet, "score", lambda *_: next(scores))
    clips = open_speech([manifest])
    heal(
        make_model(), replace(PLAN, stage=stage, steps=2, dev_steps=1), clips, dev=clips, work=tmp_path / "w"
    )
    assert read_state(tmp_path / "w").best_step == best


def test_a_new_ctc_head_takes_the_place_of_one_that_has_learned(manifest, make_model):
    clips = open_speech([manifest])
    plan = replace(PLAN, stage="ctc-head", batch_positions=400)
    learned = heal(make_model(), replace(plan, steps=20, seed=1), clips)
    again, anew = (
        heal(copy.deepcopy(learned), replace(plan, steps=1, new_ctc_head=new), clips) for new in (False, True)
    )
    first = heal(make_model(), replace(plan, steps=1), clips)
    weights = [model.ctc_head.window.weight for model in (first, anew, again)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.step("heal", family="ultravox")
def test_learns_and_stays_an_ordinary_checkpoint(manifest, tmp_path, make_model):
    clips = open_speech([manifest])
    plan = replace(
        PLAN, train=("projector", "encoder"), projector_lr=1e-2, encoder_lr=3e-3, batch_positions=400
    )
    ctc = replace(plan, stage="ctc", steps=60, dev_steps=30)
    model = heal(make_model(), ctc, clips, dev=clips)
    assert model.config.provenance["healing"][-1]["dev_wer"] < 0.3
    before = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    losses = []
    model = heal(
        model,
        replace(PLAN, steps=60, decoder_lr=1e-2, batch_positions=400, dev_steps=30),
        clips,
        dev=clips,
        work=tmp_path / "work",
        on_step=lambda step, loss: losses.append(loss),
    )
    assert losses[-1] < 0.8 * losses[0]
    assert model.config.provenance["healing"][-1]["dev_wer"] < 0.3
    after = model.decoder.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(
        before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"]
    )
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    again = load_checkpoint(save_checkpoint(model, tmp_path / "out"))
    samples = clips[0].read()
    assert (
        model_transcriber(again).transcribe(samples).text == model_transcriber(model).transcribe(samples).text
    )
    # The adapter alone, on the decoder that training began with, is the same model.
    fresh = make_model().decoder
    fresh.load_state_dict(before)
    merged = PeftModel.from_pretrained(fresh, tmp_path / "work" / "adapter").merge_and_unload()
    assert torch.allclose(
        merged.model.layers[2].mlp.up_proj.weight, after["model.layers.2.mlp.up_proj.weight"], atol=1e-6
    )


def test_merges_into_exact_weights_after_bf16(make_model):
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    trained = TrainableDecoder(model.decoder, [0, 1, 2], PLAN, "bf16")
    assert model.layers[0].mlp.up_proj.get_base_layer().weight.dtype == torch.bfloat16
    trained.merge()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.decoder.state_dict().items())


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"gradient_checkpointing": True}, {"rank": 0}])
def test_variants_of_training_lower_the_loss(manifest, change, make_model):
    losses = []
    plan = replace(PLAN, steps=12, decoder_lr=1e-2, projector_lr=1e-2, **change)
    model = heal(make_model(), plan, open_speech([manifest]), on_step=lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 0.5
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_lora_on_weights_of_four_bits_learns_and_is_merged_into_whole_ones(manifest, precision, make_model):
    pytest.importorskip("bitsandbytes")
    losses, model = [], make_model()
    before = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    plan = replace(PLAN, steps=12, decoder_lr=1e-2, projector_lr=1e-2, base_bits=4, precision=precision)
    heal(model, plan, open_speech([manifest]), on_step=lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 0.5
    after = model.decoder.state_dict()
    assert before.keys() == after.keys() and all(one.dtype == torch.float32 for one in after.values())
    moved = {name: float((after[name] - one).norm()) for name, one in before.items()}
    assert moved["model.layers.0.mlp.up_proj.weight"] > 0 == moved["model.embed_tokens.weight"]
    # What four bits lose of a weight is not in it: the change is a LoRA's, of its rank.
    change = after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-3) <= plan.rank


def test_a_teacher_is_followed(manifest, make_model):
    teacher, losses = make_model(), []
    plan = replace(PLAN, kl_weight=1.0, decoder_lr=1e-3, steps=12)
    clips = open_speech([manifest])
    heal(
        make_model(),
        replace(plan, steps=1),
        clips,
        teacher=teacher,
        on_step=lambda _, loss: losses.append(loss),
    )
    assert losses == [pytest.approx(0.0, abs=1e-4)]  # the student is the teacher
    pruned = make_model()
    pruned.layers[1].mlp.down_proj.weight.data.zero_()
    losses.clear()
    heal(pruned, plan, clips, teacher=teacher, on_step=lambda _, loss: losses.append(loss))
    assert 0 < losses[-1] < losses[0]
    with pytest.raises(UsageError, match="another audio encoder"):
        heal(make_model(seed=5), plan, clips, teacher=teacher)


def test_not_finite_stops_with_the_last_checkpoint_intact(manifest, tmp_path, make_model):
    model = make_model()
    work = tmp_path / "work"

    def poison(step: int, loss: float) -> None:
        if step == 4:
            model.projector.linear_2.weight.data[0] = float("nan")

    with pytest.raises(HealingError, match=r"not finite at step 5.*is intact"):
        heal(
            model,
            replace(PLAN, steps=9, checkpoint_steps=2),
            open_speech([manifest]),
            work=work,
            on_step=poison,
        )
    state = read_state(work)
    assert state is not None and state.step == 4


def test_other_settings_do_not_go_on_in_the_same_folder(manifest, tmp_path, make_model):
    clips = open_speech([manifest])
    heal(make_model(), PLAN, clips, work=tmp_path)
    with pytest.raises(HealingError, match=r"other settings.*decoder_lr"):
        heal(make_model(), replace(PLAN, decoder_lr=1e-3), clips, work=tmp_path)
    with pytest.raises(HealingError, match="another teacher"):
        heal(make_model(), PLAN, clips, work=tmp_path, teacher=make_model())
    longer = heal(make_model(), replace(PLAN, steps=5), clips, work=tmp_path)
    assert longer.config.provenance["healing"][-1]["steps"] == 5


def test_a_run_of_an_older_prunella_goes_on(manifest, tmp_path, make_model, monkeypatch):
    clips = open_speech([manifest])
    whole = HealingPlan.identity
    with monkeypatch.context() as older:
        older.setattr(
            HealingPlan,
            "identity",
            lambda plan: {k: v for k, v in whole(plan).items() if k != "hidden_weight"},
        )
        heal(make_model(), PLAN, clips, work=tmp_path)
    longer = heal(make_model(), replace(PLAN, steps=5), clips, work=tmp_path)
    assert longer.config.provenance["healing"][-1]["steps"] == 5
    with pytest.raises(HealingError, match=r"other settings.*hidden_weight"):
        heal(make_model(), replace(PLAN, hidden_weight=1.0), clips, work=tmp_path)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_learn_the_same_and_leave_nothing_behind(manifest, make_model):
    losses: dict[str, list[float]] = {"off": [], "on": []}
    models = {
        how: heal(
            make_model(),
            replace(PLAN, compile=how),
            open_speech([manifest]),
            on_step=lambda step, loss, seen=seen: seen.append(loss),
        )
        for how, seen in losses.items()
    }
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-4)
    for name, tensor in models["off"].state_dict().items():
        assert torch.allclose(models["on"].state_dict()[name], tensor, atol=1e-3), name
    assert not any("forward" in vars(layer) for layer in models["on"].layers)


def test_long_runs_on_a_cpu_in_bf16_are_compiled(monkeypatch):
    long, cpu = replace(PLAN, steps=None, minutes=30.0), torch.device("cpu")
    monkeypatch.setattr(machine, "compiler_works", lambda: True)
    assert choose_compile(long, "bf16", cpu)
    assert not choose_compile(long, "fp32", cpu)
    assert not choose_compile(replace(long, minutes=2.0), "bf16", cpu)
    assert choose_compile(replace(long, minutes=None, steps=900), "bf16", cpu)
    assert not choose_compile(replace(long, minutes=None, steps=100), "bf16", cpu)
    assert not choose_compile(replace(long, steps=100), "bf16", cpu)
    assert not choose_compile(replace(long, compile="off"), "bf16", cpu)
    assert choose_compile(replace(PLAN, compile="on"), "fp32", cpu)
    assert not choose_compile(replace(long, gradient_checkpointing=True), "bf16", cpu)
    monkeypatch.setattr(machine, "compiler_works", lambda: False)
    assert not choose_compile(long, "bf16", cpu)
    with pytest.raises(UsageError, match="choose from auto, on, off"):
        replace(PLAN, compile="maybe")


@pytest.mark.parametrize("compiler", ["broken", "missing"])
def test_a_compiler_that_fails_is_told_and_not_used(compiler, tmp_path):
    path = tmp_path / "bin"
    path.mkdir()
    if compiler == "broken":
        (path / "g++").write_text("#!/bin/sh\nexit 1\n")
        (path / "g++").chmod(0o755)
    env = {
        **os.environ,
        "PATH": str(path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
    env.pop("CXX", None)
    code = "from prunella.healing.training_speed import compiler_works; print(compiler_works())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    assert ("torch.compile fails here" in done.stderr) == (compiler == "broken")


def test_a_compiler_that_fails_without_a_word_is_told_by_its_error(monkeypatch, capsys):
    def fail(function):
        raise AssertionError

    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(machine.torch, "compile", fail)
    assert not machine.compiler_works()
    assert "fails here (AssertionError)" in capsys.readouterr().err


def test_early_stop(manifest, tmp_path, make_model):
    clips = open_speech([manifest])
    plan = replace(PLAN, steps=50, decoder_lr=0.0, projector_lr=0.0, dev_steps=2, patience=2)
    model = heal(make_model(), plan, clips, dev=clips[:4], work=tmp_path)
    assert model.config.provenance["healing"][-1]["steps"] == 6


def test_lora_layers(model):
    assert lora_layers("all", model) == [0, 1, 2]
    assert lora_layers("2,0:2", model) == [0, 1, 2]
    with pytest.raises(UsageError, match="was not pruned"):
        lora_layers("receiving", model)
    with pytest.raises(UsageError, match="no layer 3"):
        lora_layers("1:4", model)
    with pytest.raises(UsageError, match="write all, receiving"):
        lora_layers("some", model)
    model.config = model.config.with_provenance(pruning={"blocks": ["1:4", "6:8"]})
    assert lora_layers("receiving", model) == [1, 2]  # 6 - 3 is behind the last layer, which stands in for it


def test_bad_rows_are_reported_with_their_line(model, manifest, tmp_path, capsys):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()[:3]]
    for row in rows:
        row["audio_filepath"] = str(manifest.parent / row["audio_filepath"])
    rows[1]["text"] = "left " * 40
    rows.append({**rows[0], "audio_filepath": "missing.wav"})
    rows.append({**rows[0], "text": ""})
    path = tmp_path / "speech.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = tokenize(model, open_speech([path]), stage="ctc")
    assert [one.clip.where for one in kept] == [f"{path}:1", f"{path}:3"]
    errors = capsys.readouterr().err
    assert f"{path}:2: " in errors and "too few for" in errors
    assert f"{path}:4: " in errors and f"{path}:5: text is empty" in errors
    assert len(tokenize(model, open_speech([path]))) == 3


def test_an_unreadable_recording_is_skipped(manifest, tmp_path, capsys, make_model):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF nonsense")
    row = {"audio_filepath": str(broken), "duration": 1.0, "text": "go"}
    path = tmp_path / "speech.jsonl"
    path.write_text(json.dumps(row) + "\n")
    heal(make_model(), replace(PLAN, epochs=1, steps=None), open_speech([manifest, path]))
    assert f"skipped {path}:1" in capsys.readouterr().err


def test_a_local_dataset(tmp_path, manifest, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet

    rows = read_manifest(manifest).utterances[:4]
    # As the Hub stores speech: parquet with the recordings inside.
    features = datasets.Features({"audio": datasets.Audio(), "sentence": datasets.Value("string")})
    table = pyarrow.Table.from_pydict(
        {
            "audio": [{"bytes": row.audio.read_bytes(), "path": row.audio.name} for row in rows],
            "sentence": [row.text if place != 2 else " " for place, row in enumerate(rows)],
        },
        schema=features.arrow_schema,
    )
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    clips = open_speech([f"hf:{tmp_path / 'data'}:train"])
    assert sorted(clip.text for clip in clips) == sorted(rows[place].text for place in (0, 1, 3))
    assert "text is empty" in capsys.readouterr().err
    assert sorted(clip.seconds for clip in clips) == pytest.approx(
        sorted(rows[place].duration for place in (0, 1, 3))
    )
    assert np.abs(clips[1].read()).max() > 0.1
    with pytest.raises(ManifestError, match="cannot load the dataset"):
        open_speech([f"hf:{tmp_path / 'data'}:test"])
    with pytest.raises(UsageError, match="hf:NAME:SPLIT"):
        open_speech(["hf:only"])


def test_the_verb(manifest, tmp_path, capsys, make_model):
    import argparse

    folder = save_checkpoint(make_model(), tmp_path / "model")
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    out = tmp_path / "out"
    args = [
        str(folder),
        "--speech",
        str(manifest),
        "--dev",
        str(manifest),
        "--dev-clips",
        "3",
        "-o",
        str(out),
    ]
    assert verb.run(parser.parse_args([*args, "--steps", "2", "--rank", "2", "--precision", "fp32"])) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["steps"] == 2 and said["out"] == str(out)
    assert load_checkpoint(out).config.provenance["healing"][0]["rank"] == 2
    with pytest.raises(UsageError, match="when to stop"):
        verb.run(parser.parse_args(args))
