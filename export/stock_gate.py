"""Whether a model of a stock class says in parts what transformers' own forward says of the whole.

What is exported are the parts: a family file that is wrong about features, tokens, projector or positions would be wrong in
every graph alike, and no comparison of a graph with the parts would see it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import ExportError
from prunella.device_runtime.bundle import FeatureSpec
from prunella.device_runtime.sound.features import features
from prunella.export.onnx_gate import FLOAT_ERROR
from prunella.quantize.onnx_probe import probe_sound
from prunella.speech_llm.families.chat_prompt import audio_token
from prunella.speech_llm.families.family import WINDOW_SECONDS
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.stock import assembled
from prunella.speech_llm.stock_config import StockConfig
from prunella.speech_llm.torch_engine import TorchEngine

_TEXT_TOKENS = 16
_MASKS = ("input_features_mask", "feature_attention_mask")  # by class


@dataclass(frozen=True)
class StockGateReport:
    """What was compared, for the bundle's provenance.

    Attributes:
        logit_error: largest difference, in standard deviations of the stock class's logits; None where nothing was compared.
        not_compared: why nothing was.
    """

    logit_error: float | None = None
    not_compared: str | None = None


def gate_stock(model: SpeechLLM) -> StockGateReport | None:
    """Compare logits behind four seconds of sound, and behind each token of a text; None for a model of no stock class.

    Raises:
        ExportError: says by how much they differ, or what the stock class said of the inputs.
    """
    if model.stock is None:
        return None
    assert isinstance(model.config, StockConfig)
    if model.config.facts.trimmed and not model.stock.family.true_length:
        return StockGateReport(
            not_compared="the model was healed on audio of its true length, which its stock class does not take"
        )
    samples = probe_sound(model.config.audio.sampling_rate)
    engine = TorchEngine(model)
    audio = engine.encode(samples)
    text = _text(model)
    found = np.concatenate([engine.start(audio)[None], engine.extend(text)])
    expected = _stock_logits(model, samples, len(audio), text)
    factors = {
        1.0,
        model.stock.family.stock_logits(model.stock.config),
    }  # a transformers that does as it should has none
    error = min(
        float(np.abs(factor * found - expected).max()) / max(float(expected.std()), 1e-12)
        for factor in factors
    )
    if not error <= FLOAT_ERROR:  # also when it is NaN
        raise ExportError(
            f"taken apart, the model's logits are {error:.2g} standard deviations from those of "
            f"{type(model.stock.model).__name__} ({FLOAT_ERROR:g} is allowed): this is a fault of prunella's file for the "
            f"family '{model.config.family}', or of one that this transformers does not fit: report both versions"
        )
    return StockGateReport(error)


def _text(model: SpeechLLM) -> list[int]:
    """Any tokens but the audio's placeholder."""
    assert model.stock is not None
    vocabulary = model.view.vocab_size
    drawn = np.random.default_rng(0).integers(0, vocabulary, 2 * _TEXT_TOKENS).tolist()
    return [token for token in drawn if token != audio_token(model.stock.model.config)][:_TEXT_TOKENS]


@torch.inference_mode()
def _stock_logits(model: SpeechLLM, samples: Float32, count: int, text: list[int]) -> Float32:
    """(1 + len(text), vocab) behind the prompt and each token of the text, by the stock class."""
    assert model.stock is not None
    stock: Any = assembled(model)
    spec = model.config.audio.features
    family = model.stock.family
    heard, _ = features(samples, _stock_spec(spec) if family.stock_windows else spec)
    placeholder = audio_token(stock.config)
    span = model.prompt.audio_span(count, placeholder)
    ids = [*model.prompt.before_ids, *span, *model.prompt.after_ids, *text]
    valid = spec.valid_frames(len(samples))
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
    }
    if family.stock_inputs is not None:
        inputs |= family.stock_inputs(torch.from_numpy(heard), valid)
    else:
        inputs["input_features"] = torch.from_numpy(heard)[None]
        known = inspect.signature(stock.forward).parameters
        mask = (torch.arange(heard.shape[1]) < valid).long()[None]
        inputs |= {name: mask for name in _MASKS if name in known}
    try:
        _check_count(stock, inputs, count)
        logits = stock(**inputs, use_cache=False).logits
    except Exception as error:  # torch and transformers raise what they like
        raise ExportError(
            f"{type(stock).__name__} does not take what prunella makes of audio ({error}): report the model, and the "
            "version of transformers"
        ) from error
    rows: Float32 = logits[0, -len(text) - 1 :].float().numpy()
    return rows


def _check_count(stock: Any, inputs: dict[str, Any], count: int) -> None:
    """Where the stock class itself takes fewer placeholders than it has rows of audio, as Qwen2.5-Omni's does.

    Raises:
        ValueError: the class makes another number of rows.
    """
    hear = getattr(stock, "get_audio_features", None)
    known = inspect.signature(hear).parameters if hear is not None else {}
    if hear is None or "feature_attention_mask" not in known:  # others count by themselves
        return
    rows = hear(**{name: value for name, value in inputs.items() if name in known}).last_hidden_state
    if len(rows) != count:
        raise ValueError(f"{count} audio tokens for {len(rows)} rows of audio")


def _stock_spec(spec: FeatureSpec) -> FeatureSpec:
    """Whole windows of 30 s, which most stock classes insist on."""
    return replace(spec, multiple=WINDOW_SECONDS * 16_000, extra=0)
