"""Every family with a tokenizer of its real kind: fewer tokens, and what the device and transformers make of them."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from tiny_families import FAMILIES, FAMILY_NAMES, stock_features, tiny_stock
from tiny_tokenizers import KINDS, TEXT
from tokenizers import AddedToken
from transformers import AutoTokenizer

from prunella.device_runtime.decoding.phrase_grammar import parse_phrases
from prunella.device_runtime.opening import open_transcriber
from prunella.evaluation.manifest import read_manifest
from prunella.export.export import export_float
from prunella.pruning.blocks import Block
from prunella.pruning.prune import prune, save_pruned
from prunella.pruning.prune_vocabulary import prune_vocabulary
from prunella.speech_llm import load
from prunella.speech_llm.batches import speech_batch, speech_example
from prunella.speech_llm.families.chat_prompt import audio_token
from prunella.targets.profile import TargetProfile

pytestmark = pytest.mark.slow
LLAMA = importlib.util.find_spec("llama_cpp") is not None
RECIPE = "fp32+F32" if LLAMA else "fp32"
TARGET = TargetProfile(
    "tests", "for tests", ("onnx", "gguf") if LLAMA else ("onnx",), RECIPE, (RECIPE,), threads=1
)  # fmt: skip
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
SAID = ("Noise, number 37.", *TEXT[1:3])


def real_kind(family):
    """The family's tokens behind a vocabulary with merges, as on the Hub; `tiny_tokenizer` has them before, and no merges."""
    kind = FAMILIES[family]
    tokenizer = KINDS["tekken" if family == "voxtral" else "qwen"]()
    special = [AddedToken(token, special=True, normalized=False) for token in (*CONTROLS, *kind.tokens)]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in kind.plain])
    tokenizer.pad_token, tokenizer.bos_token = "<|pad|>", kind.bos
    return tokenizer


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def folder(request, tmp_path_factory):
    family = request.param
    kind, tokenizer = FAMILIES[family], real_kind(family)
    names = (*CONTROLS, *kind.tokens)
    audio, pad, *ends = tokenizer.convert_tokens_to_ids([names[at] for at in (4, 3, *kind.ends)])
    rest = {"audio_token_id": audio, "eos_token_id": ends, "pad_token_id": pad}
    stock = tiny_stock(family, text={"vocab_size": len(tokenizer) + 29}, rest=rest)
    stock.generation_config.eos_token_id, stock.generation_config.pad_token_id = ends, pad
    out = tmp_path_factory.mktemp("vocabulary") / family
    stock.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "merges.txt").write_text("those of before")
    return out


@pytest.fixture(scope="module")
def cut(folder):
    """The folder of the model with fewer tokens, and the old numbers of these."""
    model = load(folder)
    smaller, report = prune_vocabulary(model, SAID)
    out = folder.with_name("cut")
    assert save_pruned(smaller, report, out).max_logit_difference < 1e-4
    names = smaller.tokenizer.convert_ids_to_tokens(list(range(len(smaller.tokenizer))))
    kept = model.tokenizer.convert_tokens_to_ids(names)
    assert len(kept) == report.rows_after < report.tokens_before == report.rows_before - 29
    return out, kept


@pytest.fixture(scope="module")
def bundle(cut):
    return export_float(load(cut[0]), TARGET, cut[0].with_name("bundle"), recipe=RECIPE)


@pytest.mark.step("vocabulary", "stock reload")
@torch.inference_mode()
def test_logits_of_kept_tokens_are_the_whole_models_with_sound_at_all_positions(folder, cut, noise_manifest):
    whole, (out, kept) = load(folder), cut
    model = load(out)
    assert [kept[token] for token in model.prompt.after_ids] == list(whole.prompt.after_ids)
    assert [kept[token] for token in model.prompt.eos_ids] == list(whole.prompt.eos_ids)
    assert [[kept[token] for token in one.ids] for one in model.prompt.languages] == [
        list(one.ids) for one in whole.prompt.languages
    ]
    logits = []
    for one in (whole, model):
        examples = [speech_example(one, clip) for clip in read_manifest(noise_manifest).utterances[1:3]]
        batch = speech_batch(one, examples)
        heard = one.decoder(inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask).logits
        logits.append(heard[batch.is_token])
    if len(logits[0]) == len(logits[1]):  # the same pieces, but for numbers and marks that are not in SAID
        torch.testing.assert_close(logits[1], logits[0][..., kept], atol=1e-4, rtol=1e-4)
    stock = FAMILIES[model.config.family].stock.from_pretrained(out, dtype=torch.float32).eval()
    before = FAMILIES[model.config.family].stock.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(out)(SAID[1])["input_ids"]
    old = AutoTokenizer.from_pretrained(folder)(SAID[1])["input_ids"]
    assert [kept[token] for token in ids] == old
    found, expected = (
        one(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)).logits
        for one, row in ((stock, ids), (before, old))
    )
    torch.testing.assert_close(found, expected[..., kept], atol=1e-4, rtol=1e-4)


@pytest.mark.step("vocabulary")
def test_configurations_say_the_new_numbers(folder, cut):
    out, kept = cut
    for name in ("config.json", "generation_config.json"):
        new, old = (json.loads((one / name).read_text()) for one in (out, folder))
        for key in ("audio_token_id", "audio_token_index", "pad_token_id", "eos_token_id"):
            ids, before = new.get(key), old.get(key)
            assert (ids is None) == (before is None)
            if ids is not None:
                assert [kept[token] for token in _listed(ids)] == _listed(before), key
    body = json.loads((out / "config.json").read_text())
    assert body.get("text_config", body)["vocab_size"] == len(kept)
    assert not (out / "merges.txt").exists()


def _listed(ids):
    return ids if isinstance(ids, list) else [ids]


@pytest.mark.step("vocabulary")
def test_a_bundle_says_what_stock_generate_says(cut, bundle, noise_manifest):
    """Token for token, on the bundle that passed the gates; phrases are spelled in the pieces that there are."""
    model = load(cut[0])
    assert bundle.manifest.decoder.vocab_size == len(cut[1])
    transcriber = open_transcriber(bundle.path, engine="onnx", threads=1).with_options(guards=False)
    stock = FAMILIES[model.config.family].stock.from_pretrained(cut[0], dtype=torch.float32).eval()
    said = 0
    for clip in read_manifest(noise_manifest).utterances[1:3]:
        found = transcriber.transcribe(clip.load()).segments[0]
        count = len(found.tokens) + (found.finish_reason == "eos")
        inputs = _stock_inputs(model, clip.load())
        ids = stock.generate(**inputs, max_new_tokens=count, do_sample=False)
        expected = ids[0, inputs["input_ids"].shape[1] :].tolist()
        if found.finish_reason == "eos":
            assert expected.pop() in model.prompt.eos_ids
        assert list(found.tokens) == expected
        said += len(expected)
    assert said > 3
    phrases = parse_phrases("turn (on | off) the lights\nsomething interesting\n")
    heard = transcriber.with_phrases(phrases).transcribe(clip.load())
    assert heard.text in ("", "turn on the lights", "turn off the lights", "something interesting")


def _stock_inputs(model, samples):
    features = stock_features(model.config.family, samples, model.config.audio.features.num_mel_bins)
    mask = features.get(FAMILIES[model.config.family].mask)
    kind = FAMILIES[model.config.family]
    frames = features[kind.features].shape[1 if kind.frames_first else 2] if mask is None else int(mask.sum())
    audio = audio_token(model.stock.config)
    count = model.config.audio_tokens(model.config.encoder_frames(frames))
    ids = torch.tensor(
        [[*model.prompt.before_ids, *model.prompt.audio_span(count, audio), *model.prompt.after_ids]]
    )
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **features}


@pytest.mark.native
@pytest.mark.skipif(not LLAMA, reason="llama-cpp-python is not installed")
def test_llama_cpp_spells_and_says_the_same(bundle):
    gate = bundle.manifest.provenance["gguf_gate"]  # which compared the tokens of hard text too
    assert gate["logit_error"] < 1e-3
    sound = torch.randn(16_000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    texts = [
        open_transcriber(bundle.path, engine=engine, threads=1).with_options(guards=False).transcribe(sound)
        for engine in ("onnx", "gguf")
    ]
    assert texts[0].tokens[:3] == texts[1].tokens[:3]


@torch.inference_mode()
def test_layers_and_tokens_go_in_any_order(folder, tmp_path):
    model, block = load(folder), (Block(2, 4),)
    words_first, _ = prune(prune_vocabulary(model, SAID)[0], block, bridge=False)
    layers_first, _ = prune_vocabulary(prune(model, block, bridge=False)[0], SAID)
    tokens = torch.arange(40)[None]
    assert torch.equal(words_first.decoder(tokens).logits, layers_first.decoder(tokens).logits)
    save_pruned(words_first, prune_vocabulary(model, SAID)[1], tmp_path / "both")
    again = load(tmp_path / "both")
    assert len(again.layers) == 4 and again.prompt == layers_first.prompt
