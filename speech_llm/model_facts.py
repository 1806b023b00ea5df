"""What a model folder says of a speech LLM without its weights: the decoder's configuration, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm import hub
from prunella.speech_llm.checkpoint import DECODER_NAME, is_checkpoint, saved_bytes
from prunella.speech_llm.config import SpeechLLMConfig
from prunella.speech_llm.families import find_family
from prunella.speech_llm.load import resolve, text_only
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_folder import (
    check_is_text,
    check_memory,
    check_model_folder,
    float_bytes,
    why_unreadable,
)
from prunella.speech_llm.stock_config import StockFacts


@dataclass(frozen=True)
class ModelFacts:
    """Of a speech LLM in memory (`facts_of`) or on disk (`read_facts`)."""

    decoder: PretrainedConfig
    provenance: Mapping[str, Any]
    # Of the decoder's weights in float32.
    decoder_bytes: int

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return int(self.decoder.get_text_config().num_hidden_layers)


def facts_of(model: SpeechLLM | ModelFacts) -> ModelFacts:
    """Those of a model in memory."""
    if isinstance(model, ModelFacts):
        return model
    return ModelFacts(model.decoder.config, model.config.provenance, saved_bytes(model.decoder))


def read_facts(name: str | Path) -> ModelFacts:
    """Those of a model named as for `load`; its weights are not read.

    Raises:
        CheckpointError: as `load`, as far as it is seen without the weights.
    """
    folder = resolve(name)
    check_model_folder(folder)
    own = is_checkpoint(folder)
    family = None if own else find_family(folder)
    if not own and family is None:
        check_is_text(folder)  # first: a model that is not taken may be too large besides
    check_memory(folder)
    if own:
        return _facts(folder / DECODER_NAME, SpeechLLMConfig.load(folder).provenance)
    if family is not None and family.layout == "own":
        return _facts(resolve(hub.text_model(folder)), {})
    if family is not None:
        facts = StockFacts.load(folder, family.model_type)
        return _facts(folder, facts.provenance)
    raise text_only(name)


def _facts(decoder: Path, provenance: Mapping[str, Any]) -> ModelFacts:
    if decoder.is_dir():
        check_model_folder(decoder)
    try:
        config = AutoConfig.from_pretrained(decoder, trust_remote_code=False)
    except Exception as error:  # of many libraries and classes
        raise CheckpointError(
            f"cannot load a causal LM from '{decoder}': {why_unreadable(decoder, error)} "
            "(give a folder, or a Hugging Face id on a connected machine)"
        ) from error
    return ModelFacts(config.get_text_config(), provenance, float_bytes(decoder))
