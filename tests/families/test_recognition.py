"""A model is recognised by the class that its config.json names; what is not taken is refused by name, before weights are read."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tiny_families import FAMILIES, write_tiny
from tiny_models import byte_level_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prunella.cli import main
from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm import load, load_any
from prunella.speech_llm.families import FAMILIES as KNOWN
from prunella.speech_llm.not_here import why_not

# In a released transformers, with audio or speech in or out of them, as encoders or whole.
SPEECH = (
    *(
        "csm",
        "dia",
        "moshi",
        "bark",
        "clap",
        "clvp",
        "musicgen",
        "speecht5",
        "seamless_m4t",
        "seamless_m4t_v2",
        "whisper",
    ),
    *(
        "wav2vec2",
        "wav2vec2-bert",
        "hubert",
        "wavlm",
        "moonshine",
        "parakeet_ctc",
        "parakeet_encoder",
        "speech_to_text",
    ),
    *(
        "granite_speech",
        "granite_speech_plus",
        "phi4_multimodal",
        "qwen2_5_omni",
        "qwen2_5_omni_thinker",
        "gemma3n",
    ),
    *(
        "qwen3_omni_moe",
        "qwen3_omni_moe_thinker",
        "qwen3_omni_moe_audio_encoder",
        "gemma4",
        "musicflamingo",
        "fun_asr_nano",
    ),
    *(
        "moss_transcribe_diarize",
        "vibevoice_asr",
        "voxtral_realtime",
        "kyutai_speech_to_text",
        "higgs_audio_v2",
        "pocket_tts",
    ),
    *(
        "dots3_note",
        "nemo_speechlm",
        "nemotron_h_omni",
        "inkling_mm_model",
        "muse_spark",
        "cohere_asr",
        "canary",
    ),
    *(
        "granite_speech5",
        "nemotron_asr_streaming",
        "nemotron3_5_asr",
        "glmasr_encoder",
        "voxtral_encoder",
        "qwen3_asr_encoder",
    ),
)


def known_kinds(names) -> list[str]:
    """Those that the installed transformers has."""
    return [name for name in names if name in CONFIG_MAPPING]


def write_config(folder, body):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(body))
    return folder


@pytest.mark.parametrize("kind", known_kinds(SPEECH))
def test_no_speech_model_of_transformers_is_taken_for_a_text_llm(kind, tmp_path):
    # What the class itself would write; its weights are not even there.
    body = CONFIG_MAPPING[kind]().to_dict() | {"architectures": ["Some"]}
    parts = getattr(CONFIG_MAPPING[kind], "sub_configs", None) or {}
    body |= {part: {"hidden_size": 8} for part in parts if body.get(part) is None}
    folder = write_config(tmp_path / "model", body)
    with pytest.raises(CheckpointError) as raised:
        load_any(folder)
    said = str(raised.value)
    assert kind in said and "\n" not in said
    assert "text LLM without" not in said and "cannot load" not in said


def test_no_other_model_of_transformers_with_a_part_for_audio_is_passed_over():
    """Whatever a later transformers brings: a kind with an audio sub-configuration is seen by its configuration alone."""
    for kind in known_kinds(CONFIG_MAPPING.keys()):
        parts = getattr(CONFIG_MAPPING[kind], "sub_configs", None) or {}
        if not any(
            word in part for part in parts for word in ("audio", "speech", "codec", "thinker", "acoustic")
        ):
            continue
        body = {"model_type": kind, **{part: {"hidden_size": 8} for part in parts}}
        assert why_not(body) is not None, kind


def test_no_text_llm_of_transformers_is_taken_for_a_speech_model():
    heard = {*SPEECH, "musicgen_melody", "gemma4_unified"}
    for kind in known_kinds(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        reason = why_not({"model_type": kind, **_defaults(kind)})
        assert (reason is not None) == (kind in heard), (kind, reason)


def _defaults(kind):
    try:
        return CONFIG_MAPPING[kind]().to_dict()
    except Exception:  # some want arguments
        return {}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"model_type": "voxtral_realtime"},
            "adds audio to the text's embeddings at every step .* another engine",
        ),
        ({"model_type": "kyutai_speech_to_text"}, "adds audio .* another engine"),
        ({"model_type": "whisper"}, "without an LLM decoder"),
        ({"model_type": "vibevoice_asr"}, "draws random numbers for every recording"),
        ({"model_type": "phi4mm", "architectures": ["Phi4MMForCausalLM"]}, "own layout .*speech-lora"),
        ({"model_type": "csm"}, "makes sound"),
        (
            {
                "model_type": "qwen3_asr",
                "architectures": ["Qwen3ASRForConditionalGeneration"],
                "thinker_config": {"audio_config": {}},
            },
            "Qwen/Qwen3-ASR-0.6B-hf",
        ),
        (
            {"model_type": "qwen3_asr", "architectures": ["Qwen3ASRForTokenClassification"]},
            "a forced aligner",
        ),
        (
            {"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"], "thinker_config": {"x": 1}},
            r"whole Qwen2\.5-Omni \(qwen2_5_omni\), which also talks: .* Qwen2_5OmniThinkerForConditionalGeneration\.from_pretrained",
        ),
        (
            {"model_type": "voxtral", "architectures": ["VoxtralModel"], "audio_config": {"d_model": 8}},
            "VoxtralModel: prunella takes VoxtralForConditionalGeneration",
        ),
        # Of no class that is known: whatever its parts are called.
        ({"model_type": "my_llm", "encoder_config": {"num_mel_bins": 80}}, "encoder_config.num_mel_bins"),
        ({"model_type": "my_llm", "encoder": {"model_type": "wav2vec2_encoder"}}, "encoder.model_type"),
        ({"model_type": "my_llm", "sound_tower_cfg": {"x": 1}}, "sound_tower_cfg"),
        ({"model_type": "my_llm", "modalities": {"speech": {"x": 1}}}, "modalities.speech"),
        ({"model_type": "my_llm", "audio_token_index": 7}, "audio_token_index"),
        (
            {"model_type": "my_llm", "auto_map": {"AutoConfig": "x.Y"}, "whisper_config": {"x": 1}},
            "whisper_config",
        ),
    ],
)
def test_what_is_not_taken_is_refused_by_name(body, said, tmp_path, capsys):
    folder = write_config(tmp_path / "model", body)
    with pytest.raises(CheckpointError, match=said):
        load_any(folder)
    assert main(["prune", str(folder), "--block", "1:2", "--no-bridge", "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "text LLM without" not in error


def test_what_is_switched_off_is_no_audio(tmp_path):
    text = {"model_type": "llama", "audio_config": None, "enable_audio_output": False, "speech": {}}
    assert why_not(text) is None


def test_a_true_text_llm_is_still_said_to_be_one(tmp_path):
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a text LLM without an audio encoder"):
        load(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_transformers_lacks_names_the_version_that_has_it(family, tmp_path, monkeypatch):
    body = {
        "model_type": family,
        "architectures": [FAMILIES[family].stock.__name__],
        "audio_config": {"x": 1},
    }
    folder = write_config(tmp_path / "model", body)
    since = KNOWN[FAMILIES[family].stock.__name__].since
    monkeypatch.setattr("prunella.speech_llm.stock.transformers", SimpleNamespace(__version__="4.99"))
    with pytest.raises(
        CheckpointError, match=rf"{family}, which transformers has from {since} on, and 4.99 is"
    ):
        load(folder)


def test_a_folder_is_recognised_by_its_class_alone(tmp_path):
    """Neither by an Auto class nor by the kind: Audio Flamingo 3 is in no Auto class that would fit."""
    folder = write_tiny("audioflamingo3", tmp_path / "model")
    path = folder / "config.json"
    body = json.loads(path.read_text())
    assert load(folder).config.family == "audioflamingo3"
    path.write_text(json.dumps(body | {"architectures": ["AudioFlamingo3Model"]}))
    with pytest.raises(CheckpointError, match="AudioFlamingo3Model: prunella takes"):
        load(folder)
