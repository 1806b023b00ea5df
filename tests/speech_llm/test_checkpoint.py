import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, WhisperConfig, WhisperForConditionalGeneration

from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm import TextLLM, load, load_any, save_checkpoint
from prunella.speech_llm.batches import IGNORE, PositionClass, speech_batch, speech_example
from prunella.speech_llm.config import Prompt, SpeechLLMConfig
from prunella.speech_llm.embedded_weights import embedded_weights
from prunella.speech_llm.families.ultravox import tokenize_prompt
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_facts import read_facts
from prunella.speech_llm.torch_engine import TorchEngine, model_transcriber


def _mel(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(80, frames, generator=torch.Generator().manual_seed(seed))


def test_saved_and_loaded_models_agree_to_the_bit(small_speech_llm, tmp_path):
    save_checkpoint(small_speech_llm, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.config == small_speech_llm.config
    assert torch.equal(loaded.embed_audio(_mel(100)[None]), small_speech_llm.embed_audio(_mel(100)[None]))
    tokens = torch.tensor([[5, 9, 77]])
    assert torch.equal(loaded.decoder(tokens).logits, small_speech_llm.decoder(tokens).logits)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "audio_encoder.safetensors", "config.json", "decoder", "projector.safetensors",
    ]  # fmt: skip


def test_the_decoder_folder_is_an_ordinary_one(small_speech_llm, tmp_path):
    save_checkpoint(small_speech_llm, tmp_path / "model")
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "decoder", dtype=torch.float32)
    tokens = torch.tensor([[5, 9, 77]])
    assert torch.equal(decoder(tokens).logits, small_speech_llm.decoder(tokens).logits)
    text_llm = load_any(tmp_path / "model" / "decoder")
    assert isinstance(text_llm, TextLLM)
    with pytest.raises(CheckpointError, match="without an audio encoder"):
        load(tmp_path / "model" / "decoder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stack_factor": "5"}, r"\$\.stack_factor"),
        ({"decode": {"beams": 0}}, r"\$\.decode\.beams"),
        ({"prompt": {"before_audio": "a", "after_audio": "b", "eos": "c"}}, "unknown: eos"),
        ({"hidden": 1}, "unknown: hidden"),
    ],
)
def test_every_value_of_a_config_is_checked_and_named(small_speech_llm, tmp_path, change, message):
    small_speech_llm.config.save(tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(body | change))
    with pytest.raises(CheckpointError, match=message):
        SpeechLLMConfig.load(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config"),
        (lambda folder: (folder / "audio_encoder.safetensors").write_bytes(b"nonsense"), "cannot read"),
        (lambda folder: (folder / "decoder" / "model.safetensors").unlink(), "cannot load a causal LM"),
    ],
)
def test_a_spoilt_checkpoint_says_what_is_wrong(small_speech_llm, tmp_path, spoil, message):
    save_checkpoint(small_speech_llm, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model")


def test_a_missing_weight_is_named(small_speech_llm, tmp_path):
    from safetensors.torch import load_file, save_file

    save_checkpoint(small_speech_llm, tmp_path / "model")
    path = tmp_path / "model" / "projector.safetensors"
    tensors = load_file(path)
    del tensors["ln_mid.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"ln_mid\.weight"):
        load(tmp_path / "model")


def test_a_failed_save_leaves_what_was_there(small_speech_llm, tmp_path, monkeypatch):
    save_checkpoint(small_speech_llm, tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_text()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunella.speech_llm.checkpoint.save_decoder", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(small_speech_llm, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_encoder_is_whispers_own_at_full_length(small_speech_llm):
    stock = WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=64,
            num_mel_bins=80,
        )
    ).model.encoder.eval()
    stock.load_state_dict(small_speech_llm.audio_encoder.state_dict())
    with torch.no_grad():
        expected = stock(_mel(3000)[None]).last_hidden_state
        ours = small_speech_llm.audio_encoder(_mel(3000)[None])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_batched_audio_equals_single_audio(small_speech_llm):
    lengths = [40, 120, 70]
    rows = [_mel(frames, frames) for frames in lengths]
    padded = torch.zeros(3, 80, 120)
    for row, mel in zip(padded, rows, strict=True):
        row[:, : mel.shape[1]] = mel
    together = small_speech_llm.embed_audio(padded, torch.tensor(lengths))
    for one, mel in zip(together, rows, strict=True):
        alone = small_speech_llm.embed_audio(mel[None])[0]
        torch.testing.assert_close(one[: len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_the_projector_gates_with_the_second_half(small_speech_llm):
    projector = small_speech_llm.projector
    frames = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(1))
    hidden = projector.linear_1(projector.ln_pre(frames.reshape(1, 2, 160)))
    expected = projector.linear_2(
        projector.ln_mid(hidden[..., :32] * torch.nn.functional.silu(hidden[..., 32:]))
    )
    torch.testing.assert_close(projector(frames), expected)


def test_batches_lay_out_classes_and_labels(small_speech_llm, noise_manifest):
    from prunella.evaluation.manifest import read_manifest

    model = small_speech_llm
    examples = [speech_example(model, one) for one in read_manifest(noise_manifest).utterances[:3]]
    batch = speech_batch(model, examples)
    for row, example in enumerate(examples):
        assert example.tokens[-1] == model.prompt.eos_ids[0]
        assert "," not in model.tokenizer.decode(example.tokens)
        scored = batch.labels[row][batch.labels[row] != IGNORE]
        assert tuple(scored.tolist()) == example.tokens
        kinds = batch.position_class[row]
        assert int((kinds == PositionClass.TEXT).sum()) == len(example.tokens) - 1
        assert int((kinds == PositionClass.AUDIO).sum()) == example.log_mel.shape[1] // 10
        assert int((kinds >= 0).sum()) == int(batch.attention_mask[row].sum()) == example.length(model) - 1


def test_the_engine_scores_what_it_decodes(small_speech_llm):
    engine = TorchEngine(small_speech_llm)
    audio = engine.encode(np.random.default_rng(0).standard_normal(20_000).astype(np.float32))
    logits, tokens, expected = engine.start(audio), [7, 99, 2], []
    for token in tokens:
        expected.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token])
        logits = engine.step(token)
    np.testing.assert_allclose(engine.score(audio, tokens), expected, atol=1e-4)


def test_an_end_token_that_does_not_exist_is_refused(small_speech_llm):
    config = replace(small_speech_llm.config, prompt=Prompt("a", "b", "<|nowhere|>"))
    with pytest.raises(CheckpointError, match="nowhere"):
        tokenize_prompt(config, small_speech_llm.tokenizer)


def test_a_projector_of_another_width_is_refused(small_speech_llm):
    config = replace(small_speech_llm.config, text_hidden_size=48)
    with pytest.raises(CheckpointError, match="makes vectors of 48"):
        SpeechLLM(config, small_speech_llm.decoder, small_speech_llm.tokenizer)


@pytest.mark.step("recognise", family="ultravox")
def test_an_ultravox_checkpoint_of_the_hub_layout_loads(small_speech_llm, tmp_path):
    from safetensors.torch import save_file

    model = small_speech_llm
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=64,
            num_mel_bins=80,
        )
    )
    whisper.model.encoder.load_state_dict(model.audio_encoder.state_dict())
    whisper.save_pretrained(tmp_path / "audio")
    tokenizer = model.tokenizer
    model.decoder.save_pretrained(tmp_path / "text")
    tokenizer.chat_template = "{% for m in messages %}U:{{ m['content'] }}{% endfor %}A:"
    tokenizer.save_pretrained(tmp_path / "text")
    (tmp_path / "ultravox").mkdir()
    weights = {f"multi_modal_projector.{k}": v.contiguous() for k, v in model.projector.state_dict().items()}
    save_file(weights, tmp_path / "ultravox" / "model.safetensors")
    facts = {
        "model_type": "ultravox", "audio_model_id": str(tmp_path / "audio"), "text_model_id": str(tmp_path / "text"),
        "stack_factor": 5, "hidden_size": 64, "projector_act": "swiglu", "projector_ln_mid": True,
    }  # fmt: skip
    (tmp_path / "ultravox" / "config.json").write_text(json.dumps(facts))
    loaded = load(tmp_path / "ultravox")
    read = read_facts(tmp_path / "ultravox")
    assert (
        read.num_layers == len(loaded.layers) and read.decoder.model_type == loaded.decoder.config.model_type
    )
    assert torch.equal(loaded.embed_audio(_mel(60)[None]), model.embed_audio(_mel(60)[None]))
    assert loaded.config.prompt.before_audio.startswith("U:") and loaded.config.prompt.after_audio == "A:"
    (tmp_path / "ultravox" / "config.json").write_text(json.dumps({**facts, "projector_ln_mid": False}))
    with pytest.raises(CheckpointError, match=r"v0\.5"):
        load(tmp_path / "ultravox")


def test_the_reference_writes_what_it_wrote_when_it_was_made(reference):
    from prunella.device_runtime.sound.audio import load_audio

    transcriber = model_transcriber(reference, replace(reference.config.decode, guards=False))
    folder = Path(__file__).parents[2]
    lines = (embedded_weights("reference") / "expected.jsonl").read_text().splitlines()
    # The other rows are of recordings that are not in this repository.
    rows = [row for row in map(json.loads, lines) if row["audio_filepath"].startswith("clips/")]
    same = sum(
        transcriber.transcribe(load_audio(folder / "examples" / row["audio_filepath"])).text == row["text"]
        for row in rows
    )
    assert len(rows) == 11 and same >= 0.95 * len(rows)
