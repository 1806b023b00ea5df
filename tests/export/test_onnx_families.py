"""Families whose graphs the model builder leaves incomplete are exported rightly; the others are refused by name."""

from __future__ import annotations

import pytest
from transformers import (
    CONFIG_MAPPING,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    NemotronConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    SmolLM3Config,
)

from prunella.cli import main
from prunella.device_runtime.base.errors import CheckpointError
from prunella.export.decoder import export_decoder
from prunella.export.export import export_float
from prunella.export.onnx_families import FAMILIES, check_onnx_decoder
from prunella.export.onnx_gate import FLOAT_ERROR
from prunella.export.onnx_rotary import settings_by_kind
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


LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * step for step in range(24)],
    "long_factor": [4.0 + 0.2 * step for step in range(24)],
}
GEMMA = {
    "head_dim": 16,
    "sliding_window": 16,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention"],
}


def rotation(config):
    """Kinds of rotary embedding, for the test's name."""
    return "+".join(one.get("rope_type", "default") for one in settings_by_kind(config).values())


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SIZES, **GRANITE, attention_multiplier=0.0625),
        MistralConfig(**SIZES, sliding_window=16),
        Phi3Config(**SIZES, sliding_window=16, original_max_position_embeddings=2_048),
        Qwen2Config(**SIZES, **SLIDING, sliding_window=16),
        Qwen2Config(**SIZES, **SLIDING, sliding_window=1_500),  # wider than the first buffers
        Gemma3TextConfig(
            **SIZES,
            **GEMMA,
            final_logit_softcapping=20.0,
            rope_parameters={"full_attention": {**LINEAR, "rope_theta": 1e6}, "sliding_attention": PLAIN},
        ),
        SmolLM3Config(**SIZES, no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=16),
        LlamaConfig(**SIZES, rope_parameters=LINEAR),
        LlamaConfig(**SIZES, rope_parameters=LLAMA3),
        LlamaConfig(**SIZES | {"max_position_embeddings": 4_096}, rope_parameters=DYNAMIC),
        Qwen2Config(**SIZES, rope_parameters={**ROPE, "rope_type": "yarn"}),
        Phi3Config(
            **SIZES | {"hidden_size": 128, "num_attention_heads": 2, "max_position_embeddings": 8_192},
            original_max_position_embeddings=2_048,
            rope_parameters=LONGROPE,
        ),
        PhiConfig(**SIZES, partial_rotary_factor=1.0),  # these two: norms with an epsilon of their own
        NemotronConfig(**SIZES, head_dim=32),
    ],
    ids=lambda config: f"{config.model_type}-{getattr(config, 'sliding_window', None)}-{rotation(config)}",
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
        ("olmo", {}, r"'olmo' .*the model builder's graph says something else"),
        ("hunyuan_v1_dense", {}, r"'hunyuan_v1_dense' .*no positions"),
        ("phimoe", {}, "'phimoe' .*code of its own"),
        ("granitemoehybrid", {"layer_types": ["attention"] * 2}, "no rotary embedding, and"),
        ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 1_024}, "beyond 1024 positions"),
        (
            "phi3",
            {
                "rope_parameters": LONGROPE,
                "original_max_position_embeddings": 512,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
            },
            "'longrope'.* beyond 512 positions",
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
    model = speech_llm_around(CONFIG_MAPPING["olmo2"](**SIZES))
    save_checkpoint(model, tmp_path / "model")
    arguments = ["--target", "x86-cpu", "--drop", "1", "--no-baseline", "-o", str(tmp_path / "out")]
    assert main(["build", str(tmp_path / "model"), *arguments]) == 1
    assert "'olmo2' cannot be exported to ONNX" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
