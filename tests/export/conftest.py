import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import tiny_speech_llm
from transformers import PreTrainedTokenizerFast

from prunella.device_runtime.bundle import Bundle
from prunella.export.export import export_float
from prunella.quantize.bundle_writer import requantize
from prunella.speech_llm.config import AudioEncoderConfig, Prompt, SpeechLLMConfig
from prunella.speech_llm.model import SpeechLLM
from prunella.targets.profile import load_target


@pytest.fixture(scope="session")
def tiny_model() -> SpeechLLM:
    """A random speech LLM whose weights are large enough that logits differ."""
    model = tiny_speech_llm(
        tiny_models.byte_level_tokenizer(),
        seed=3,
        layers=3,
        prompt=Prompt("user: ", " say it: ", "<|im_end|>"),
        intermediate_size=160,
        head_dim=16,
        max_position_embeddings=4096,
        rope_theta=1e5,
        initializer_range=0.2,
    )
    for name, parameter in model.audio_encoder.named_parameters():
        if parameter.ndim > 1 and "embed_positions" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="session")
def float_bundle(tiny_model, tmp_path_factory) -> Bundle:
    return export_float(tiny_model, load_target("x86-cpu"), tmp_path_factory.mktemp("float") / "bundle")


@pytest.fixture(scope="session")
def bundles(float_bundle, tmp_path_factory) -> dict[str, Bundle]:
    """The tiny model in every recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    made = {recipe: requantize(float_bundle, recipe, folder / recipe) for recipe in ("int8", "int4")}
    return {"fp32": float_bundle, **made}


@pytest.fixture
def noise() -> np.ndarray:
    """1.3 s of noise at 16 kHz."""
    return np.random.default_rng(5).normal(0, 0.1, 20_800).astype(np.float32)


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny model's: every byte a token, no merges."""
    return tiny_models.byte_level_tokenizer()


@pytest.fixture(scope="session")
def speech_llm_around(byte_level_tokenizer):
    """Make a speech LLM around any decoder configuration of hidden size 64, its logits spread by 1 or more."""
    from transformers import AutoModelForCausalLM

    def make(decoder_config, tokenizer=None, *, encoder=None, stack_factor=5, **changes) -> SpeechLLM:
        torch.manual_seed(5)
        decoder = AutoModelForCausalLM.from_config(decoder_config, dtype=torch.float32)
        for name, parameter in decoder.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
        config = SpeechLLMConfig(
            audio_encoder=encoder or AudioEncoderConfig(32, 2, 2, 64),
            stack_factor=stack_factor,
            projector_hidden_size=64,
            text_hidden_size=decoder_config.hidden_size,
            prompt=Prompt("user: ", " say it: ", "<|im_end|>"),
            extra_padding=1_600,
            provenance={"base_model": "tiny"},
            **changes,
        )
        model = SpeechLLM(config, decoder, tokenizer or byte_level_tokenizer)
        for name, parameter in model.audio_encoder.named_parameters():
            if (parameter.ndim > 1 and "embed_positions" not in name) or name.endswith(".bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        return model.float().eval().requires_grad_(False)

    return make


@pytest.fixture
def branching() -> list[tuple[list[int], list[int]]]:
    """Tokens and parents of some passes: transcripts branch, one ends, and one comes back to an older line."""
    return [
        ([5, 6, 7], [0, 0, 0]),
        ([8, 9, 10], [2, 0, 0]),
        ([11, 12], [1, 1]),
        ([13, 14, 15, 16], [0, 1, 0, 1]),
        ([17], [3]),
    ]
