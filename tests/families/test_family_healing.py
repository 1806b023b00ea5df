"""Healing the families of stock speech LLMs: letters, languages, encoders, audio of its true length, dev sets and teachers."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_families import FAMILY_NAMES, write_tiny

import prunella.cli
from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.opening import open_transcriber
from prunella.evaluation.manifest import read_manifest
from prunella.export.export import export
from prunella.healing.clips import open_speech, tokenize
from prunella.healing.dev_set import DevSet
from prunella.healing.features import FeatureStore
from prunella.healing.heal import heal
from prunella.healing.learner import Learner
from prunella.healing.pass_inputs import pass_inputs
from prunella.healing.plan import Augmentation, HealingPlan
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune
from prunella.pruning.redundancy import measure_redundancy
from prunella.speech_llm import load
from prunella.speech_llm.batches import PositionClass, batch_loss, speech_batch, speech_example
from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.ctc_head import ENGLISH, CtcFrames
from prunella.speech_llm.torch_engine import TorchEngine, model_features, model_transcriber

pytestmark = pytest.mark.slow

PLAIN = Augmentation.none()
PLAN = HealingPlan(
    steps=2, rank=4, precision="fp32", batch_positions=2_000, micro_positions=1_000, augmentation=PLAIN
)
WINDOWS = [name for name in FAMILY_NAMES if name in ("voxtral", "glmasr")]


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def folder(request, tmp_path_factory):
    return write_tiny(request.param, tmp_path_factory.mktemp("families") / request.param)


@pytest.fixture(scope="module")
def windows_folder(tmp_path_factory):
    return write_tiny(WINDOWS[0], tmp_path_factory.mktemp("windows") / WINDOWS[0])


@pytest.fixture(scope="module")
def asr_folder(tmp_path_factory):
    return write_tiny("qwen3_asr", tmp_path_factory.mktemp("asr") / "qwen3_asr")


@pytest.fixture
def german(noise_manifest, tmp_path):
    """The same clips, half of whose rows say that they are German."""
    rows = [json.loads(line) for line in noise_manifest.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["audio_filepath"] = str(noise_manifest.parent / row["audio_filepath"])
        row |= {"language": "de", "text": "Größe"} if number % 2 else {}
    path = tmp_path / "german.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def inputs_of(model, clips, *, encode):
    rows = tokenize(model, clips)
    store = FeatureStore(model, rows, PLAIN, 0, encode=encode)
    ready = [store.pass_clip(i, store.finish(store.load(i, 0), i, 0)) for i in range(len(rows))]
    return store, pass_inputs(model, ready, encoded=encode)


@pytest.mark.step("CTC head")
def test_letters_from_training_to_beams(folder, noise_manifest, tmp_path):
    out = tmp_path / "lettered"
    arguments = ["heal", str(folder), "--stage", "ctc-head", "--speech", str(noise_manifest), "--steps", "3"]
    assert prunella.cli.main([*arguments, "-o", str(out)]) == 0
    model = load(out)
    assert (
        json.loads((out / "prunella.json").read_text())["ctc_alphabet"]
        == model.config.ctc_alphabet
        == ENGLISH
    )
    # A token of 60 ms, which Fun-ASR has, is two frames of letters.
    assert (
        24 <= 16_000 / model.ctc_head.frames.samples <= (34 if model.config.samples_per_frame == 960 else 27)
    )
    before = load(folder).state_dict()
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("ctc_head.")}
    assert all(torch.equal(tensor, before[name]) for name, tensor in rest.items())
    torch.manual_seed(0)
    for parameter in model.ctc_head.parameters():  # letters that are heard with some certainty
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    export(model, "x86-cpu", tmp_path / "bundle", recipe="fp32")
    plain = model_transcriber(model)
    exported = open_transcriber(tmp_path / "bundle", threads=1)
    for utterance in read_manifest(noise_manifest).utterances[2:5]:
        samples = utterance.load()
        rows = [one.engine.encode(samples) for one in (plain, exported)]
        np.testing.assert_allclose(rows[1], rows[0], atol=1e-3)
        letters = [one.engine.ctc_log_probs for one in (plain, exported)]
        heard = model.config.audio.features.valid_frames(len(samples))
        frames = CtcFrames.of(model.config).count(model.config.encoder_frames(heard))
        assert letters[0].shape == letters[1].shape == (frames, 1 + len(ENGLISH))
        np.testing.assert_allclose(letters[1], letters[0], atol=2e-3)
        assert letters[0].std() > 0.1
        searches = [one.with_options(beams=4, guards=False).transcribe(samples) for one in (plain, exported)]
        assert searches[0].segments[0].tokens == searches[1].segments[0].tokens


def test_drafts_and_small_recipes_keep_the_head(asr_folder, noise_manifest, tmp_path):
    model = load(asr_folder)
    torch.manual_seed(0)
    model.add_ctc_head(ENGLISH).requires_grad_(False)
    model.config = model.config.with_decode(replace(model.config.decode, draft=True))
    samples = read_manifest(noise_manifest).utterances[3].load()
    export(model, "x86-cpu", tmp_path / "fp32", recipe="fp32")
    texts = []
    for draft in (True, False):
        transcriber = open_transcriber(
            tmp_path / "fp32", threads=1, options=replace(model.config.decode, draft=draft)
        )
        assert (transcriber.drafter is not None) == draft
        texts.append(transcriber.with_options(beams=1, guards=False).transcribe(samples).segments[0].tokens)
    assert texts[0] == texts[1]
    plain = TorchEngine(model.eval())
    plain.encode(samples)
    for recipe in ("int8", "int4"):
        arguments = ["quantize", str(tmp_path / "fp32"), "--recipe", recipe, "-o", str(tmp_path / recipe)]
        assert prunella.cli.main(arguments) == 0
        small = open_transcriber(tmp_path / recipe, threads=1)
        small.engine.encode(samples)
        assert np.abs(np.exp(small.engine.ctc_log_probs) - np.exp(plain.ctc_log_probs)).mean() < 0.02


@pytest.mark.parametrize("encode", [True, False])
def test_the_loss_is_that_of_the_model(folder, german, encode):
    """Languages, padding and windows are in the same places as where cuts are measured."""
    model = load(folder)
    batch = speech_batch(model, [speech_example(model, row) for row in read_manifest(german).utterances[:5]])
    expected, tokens = batch_loss(model.decoder, batch)
    _, inputs = inputs_of(model, open_speech([german])[:5], encode=encode)
    parts = ("projector",) if encode else ("projector", "encoder")
    loss = float(Learner(model, replace(PLAN, train=parts))(inputs)[0])
    assert loss == pytest.approx(expected, rel=3e-3)  # features are kept in float16
    assert int((inputs.labels >= 0).sum()) == tokens


def test_the_encoder_can_be_trained_too(folder, noise_manifest, tmp_path):
    model, before = load(folder), load(folder).state_dict()
    plan = replace(
        PLAN, train=("projector", "encoder"), augmentation=Augmentation(variants=1, noise_only=0.2)
    )
    clips = open_speech([noise_manifest])
    for steps in (1, 2):  # the second sitting reads what the first has cached
        model = heal(load(folder), replace(plan, steps=steps), clips, work=tmp_path / "work")
    save_checkpoint(model, tmp_path / "healed")
    changed = {
        name
        for name, tensor in load(tmp_path / "healed").state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert any("audio_encoder" in name for name in changed) and any("projector" in name for name in changed)
    assert not any("embed_positions" in name or name.startswith("decoder") for name in changed)


def test_dev_texts_are_the_transcribers(folder, noise_manifest):
    model = load(folder)
    model.config = model.config.with_decode(
        replace(model.config.decode, speech_probability=0.0, max_tokens_per_second=8.0)
    )
    clips = open_speech([noise_manifest])[:4]
    store, inputs = inputs_of(model, clips, encode=True)
    learner = Learner(model, PLAN).eval()
    texts = DevSet(model, store, 2_000).transcribe(learner, inputs, [clip.seconds for clip in clips])
    transcriber = model_transcriber(model, model.config.decode)
    # Features are kept in float16: with those, since texts of random weights hang on less.
    rows = zip(learner.audio_embeddings(inputs), learner.audio_tokens(inputs).tolist(), strict=True)
    heard = iter([row[:count].detach().numpy() for row, count in rows])
    transcriber.engine.encode = lambda _: next(heard)
    expected = [transcriber.transcribe(clip.read()).text for clip in clips]
    assert any(expected)
    assert texts == expected


def test_the_answer_names_the_language(asr_folder, german, tmp_path):
    model = load(asr_folder)
    clips = open_speech([german])
    rows = tokenize(model, clips)
    texts = [model.tokenizer.decode(row.tokens[:-1]) for row in rows[:2]]
    assert [text.partition("<asr_text>")[0] for text in texts] == ["language English", "language German"]
    assert model.tokenizer.decode(rows[1].said) == "Größe"
    store = FeatureStore(model, rows, Augmentation(noise_only=0.2), 0, encode=True)
    nothing = len(store) - 1
    assert model.tokenizer.decode(store.tokens(nothing)[:-1]) == "language None<asr_text>"
    assert store.said(nothing) == ()
    # What a CTC loss aligns with the audio is what is said in it.
    _, inputs = inputs_of(model, clips[:2], encode=True)
    assert inputs.target_lengths.tolist() == [len(row.said) for row in rows[:2]]


def test_a_language_that_the_model_does_not_have(asr_folder, german, capsys):
    model = load(asr_folder)
    clips = open_speech([german], language="tlh")
    assert {clip.language for clip in clips} == {"tlh", "de"}
    kept = tokenize(model, clips)
    assert {row.clip.language for row in kept} == {"de"}
    assert "no language 'tlh'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no language 'tlh'"):
        speech_example(model, read_manifest(german).in_language("tlh").utterances[0])


def test_the_prompt_names_the_language_where_the_answer_does_not(windows_folder, german):
    model = load(windows_folder)
    if not model.prompt.languages:
        pytest.skip("its prompt has no place for one")
    examples = [speech_example(model, row) for row in read_manifest(german).utterances[:2]]
    _, inputs = inputs_of(model, open_speech([german])[:2], encode=True)
    batch = speech_batch(model, examples)
    for row, language in enumerate(("", "de")):
        prompt = model.prompt.with_language(language)
        length = int(inputs.is_audio[row].sum()) + len(prompt.before_ids) + len(prompt.after_ids)
        ids = inputs.input_ids[row]
        assert ids[length - len(prompt.after_ids) : length].tolist() == list(prompt.after_ids)
        assert examples[row].length(model) == length + len(examples[row].tokens)
        assert int((batch.labels[row] >= 0).nonzero()[0]) == length - 1


def test_letters_of_another_language(asr_folder, german, tmp_path):
    plan = replace(PLAN, stage="ctc-head", steps=1)
    model = heal(load(asr_folder), plan, open_speech([german]))
    assert model.config.ctc_alphabet == ENGLISH + "ßö"
    with pytest.raises(UsageError, match="--new-ctc-head"):
        heal(model, replace(plan, alphabet="abc"), open_speech([german]))
    anew = heal(model, replace(plan, alphabet="einos", new_ctc_head=True), open_speech([german]))
    assert anew.config.ctc_alphabet == " einos"


def test_silence_of_a_window_is_a_class_of_its_own(windows_folder, noise_manifest):
    model = load(windows_folder)
    examples = [speech_example(model, row) for row in read_manifest(noise_manifest).utterances[:3]]
    batch = speech_batch(model, examples)
    audio, silence = (
        (batch.position_class == kind).sum(1) for kind in (PositionClass.AUDIO, PositionClass.SILENCE)
    )
    spec = model.config.audio
    tokens = [
        -(-row.load().size // spec.samples_per_token) for row in read_manifest(noise_manifest).utterances[:3]
    ]
    assert audio.tolist() == tokens
    whole = model.config.audio_tokens(model.config.encoder_frames(3_000))
    assert (audio + silence).tolist() == [whole] * 3
    found = measure_redundancy(model.decoder, [batch])
    assert found.counts["silence"] == int(silence.sum())
    parts = found.distance(("audio",)) * int(audio.sum()) + sum(
        found.distance((kind,)) * found.counts[kind] for kind in ("prompt", "text")
    )
    np.testing.assert_allclose(
        found.distance() * sum(found.counts[kind] for kind in ("audio", "prompt", "text")), parts
    )


@pytest.mark.parametrize("family", WINDOWS)
def test_trimmed_audio(family, noise_manifest, tmp_path, capsys):
    folder = write_tiny(family, tmp_path / family)
    out = tmp_path / "trimmed"
    arguments = ["heal", str(folder), "--trim-audio", "--speech", str(noise_manifest), "--steps", "3"]
    assert prunella.cli.main([*arguments, "-o", str(out)]) == 0
    capsys.readouterr()
    assert json.loads((out / "prunella.json").read_text())["trimmed"] is True
    whole, model = load(folder), load(out)
    samples = read_manifest(noise_manifest).utterances[-1].load()
    assert len(TorchEngine(model).encode(samples)) < len(samples) / model.config.audio.samples_per_token + 2
    assert [model_features(one, samples)[0].shape[1] for one in (whole, model)] == [3_000, 216]
    # What trimming alone costs is a comparison of two systems.
    arguments = ["eval", str(folder), f"{folder}@trimmed", "--speech", str(noise_manifest), "--limit", "2"]
    assert prunella.cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["systems"][1].endswith("@trimmed") and "paired" in found
    assert found["a"]["overall"] != found["b"]["overall"]
    with pytest.raises(UsageError, match="--trim-audio too"):
        heal(load(folder), replace(PLAN, trim_audio=True), open_speech([noise_manifest]), teacher=whole)
    heal(load(out), replace(PLAN, steps=1), open_speech([noise_manifest]), teacher=load(out))
    export(model, "x86-cpu", tmp_path / "bundle", recipe="fp32")
    transcriber = open_transcriber(tmp_path / "bundle", threads=1).with_options(guards=False)
    plain = model_transcriber(model).with_options(guards=False)
    assert transcriber.transcribe(samples).segments[0].tokens == plain.transcribe(samples).segments[0].tokens


def test_nothing_is_trimmed_where_there_is_no_silence(asr_folder, noise_manifest):
    with pytest.raises(UsageError, match="nothing to trim"):
        heal(load(asr_folder), replace(PLAN, trim_audio=True), open_speech([noise_manifest]))


def test_every_way_of_training(folder, noise_manifest, tmp_path):
    """Of a pruned model, with the uncut one as the teacher, all at once; a run that ended goes on where it was."""
    full = load(folder)
    pruned, _ = prune(full, [Block(2, 4)], bridge=False)
    plan = replace(
        PLAN, precision="bf16", gradient_checkpointing=True, hidden_weight=0.5, ctc_weight=0.3, rounding=32,
        train=("projector", "decoder", "encoder"),
    )  # fmt: skip
    clips = open_speech([noise_manifest])[:4]
    for steps in (1, 2):
        student = copy.deepcopy(pruned)
        healed = heal(
            student, replace(plan, steps=steps), clips, dev=clips[:1], teacher=full, work=tmp_path / "work"
        )
    record = healed.config.provenance["healing"][-1]
    assert record["steps"] == 2 and record["dev_wer"] is not None
    save_checkpoint(healed, tmp_path / "healed")
    assert len(load(tmp_path / "healed").view) == 4


def test_the_ctc_stage_aligns_what_is_said(asr_folder, noise_manifest):
    clips = [replace(clip, text=clip.text[:2]) for clip in open_speech([noise_manifest])]
    model = heal(load(asr_folder), replace(PLAN, stage="ctc"), clips, dev=clips[:2])
    assert model.config.provenance["healing"][-1]["dev_wer"] is not None
