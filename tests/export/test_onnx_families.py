"""Families whose graphs the model builder leaves incomplete are exported rightly; the others are refused by name."""

from __future__ import annotations

import pytest
from transformers import (
    CONFIG_MAPPING,
    GraniteConfig,
    MistralConfig,
    NemotronConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
)

from prunella.cli import main
from prunella.device_runtime.base.errors import CheckpointError
from prunella.export.decoder import export_decoder
from prunella.export.export import export_float
from prunella.export.onnx_families import FAMILIES, check_onnx_decoder
from prunella.export.onnx_gate import FLOAT_ERROR
from prunella.speech_llm.checkpoint import save_checkpoint, save_decoder

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "max_position_embeddings": 2_048,
}
SLIDING = {"use_sliding_window": True, "max_window_layers": 1}
ROPE = {"rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 512}
GRANITE = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0}


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SIZES, **GRANITE, attention_multiplier=0.0625),
        MistralConfig(**SIZES, sliding_window=16),
        Phi3Config(**SIZES, sliding_window=16, original_max_position_embeddings=2_048),
        Qwen2Config(**SIZES, **SLIDING, sliding_window=16),
        Qwen2Config(**SIZES, **SLIDING, sliding_window=1_500),  # wider than the first buffers
        PhiConfig(**SIZES, partial_rotary_factor=1.0),  # these two: norms with an epsilon of their own
        NemotronConfig(**SIZES, head_dim=32),
    ],
    ids=lambda config: f"{config.model_type}-{getattr(config, 'sliding_window', None)}",
)
def test_what_the_builder_leaves_out_is_added(config, speech_llm_around, tmp_path):
    bundle = export_float(speech_llm_around(config), "x86-cpu", tmp_path / "out")
    assert 0 < bundle.manifest.provenance["onnx_gate"]["logit_error"] < FLOAT_ERROR


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "lfm2",
            {},
            r"'lfm2' cannot be exported to ONNX \(its convolutions keep a state .*there are llama, ",
        ),
        ("smollm3", {}, r"'smollm3' .*a target with the gguf engine takes it\)"),
        ("gemma3_text", {}, r"'gemma3_text' .*does not read its rotary settings"),
        ("olmo", {}, r"'olmo' .*the model builder's graph says something else"),
        ("hunyuan_v1_dense", {}, r"'hunyuan_v1_dense' .*no positions"),
        ("phimoe", {}, "'phimoe' .*code of its own"),
        ("granitemoehybrid", {"layer_types": ["attention"] * 2}, "no rotary embedding, and"),
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear"}}, "of the kind 'linear' cannot be exp"),
        (
            "qwen2",
            {"rope_parameters": {**ROPE, "rope_type": "yarn"}},
            "of the kind 'yarn' cannot be exported",
        ),
        ("olmo2", {}, r"'olmo2' cannot be exported to ONNX \(the model builder has no such family"),
        ("llama", {"head_dim": 24}, "attention heads of 24 .* multiple of 16 wide"),
        ("phi", {"partial_rotary_factor": 0.5}, "rotary embeddings over 8 of 16 .* multiple of 16 wide"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_its_configuration(kind, changes, message):
    with pytest.raises(CheckpointError, match=message):
        check_onnx_decoder(CONFIG_MAPPING[kind](**SIZES | changes))


def test_families_that_are_named_exist_without_code_of_their_own():
    assert set(FAMILIES) <= set(CONFIG_MAPPING)
    llama3 = {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    check_onnx_decoder(CONFIG_MAPPING["llama"](**SIZES, rope_parameters=llama3))


def test_whatever_the_builder_raises_is_one_line(tiny_model, tmp_path, monkeypatch):
    from onnxruntime_genai.models import builder

    def fail(*_args, **_options):
        raise KeyError("rope_type")

    save_decoder(tiny_model.decoder, tiny_model.tokenizer, tmp_path / "decoder")
    monkeypatch.setattr(builder, "create_model", fail)
    with pytest.raises(
        CheckpointError, match=r"of the kind 'llama' \(KeyError: 'rope_type'\): there are"
    ) as raised:
        export_decoder(tmp_path / "decoder", tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_a_build_says_it_before_it_measures_anything(speech_llm_around, tmp_path, capsys):
    model = speech_llm_around(CONFIG_MAPPING["smollm3"](**SIZES))
    save_checkpoint(model, tmp_path / "model")
    arguments = ["--target", "x86-cpu", "--drop", "1", "--no-baseline", "-o", str(tmp_path / "out")]
    assert main(["build", str(tmp_path / "model"), *arguments]) == 1
    assert "'smollm3' cannot be exported to ONNX" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
