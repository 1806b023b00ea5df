"""One call for every kind of model: an embedded name, a folder, or a Hugging Face id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.base.files import bring_back
from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.device_runtime.base.suggestions import nearest
from prunella.speech_llm import hub
from prunella.speech_llm.checkpoint import DECODER_NAME, is_checkpoint, load_checkpoint, load_decoder
from prunella.speech_llm.families import Family, find_family
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_folder import check_is_text, check_memory, check_model_folder
from prunella.speech_llm.reference import reference_folder
from prunella.speech_llm.stock import load_stock
from prunella.speech_llm.streamed_loading import Stream, chooses_streaming

_MISTYPED = 0.8  # so like an embedded model's name is none of the Hub


@dataclass(frozen=True)
class TextLLM:
    """A plain causal LM: it can be analysed and pruned, not exported as a speech LLM."""

    decoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def resolve(name: str | Path) -> Path:
    """Folder of a model named by an embedded name, a path or a Hugging Face id (downloaded if need be)."""
    if str(name) in EMBEDDED:
        return reference_folder(str(name))
    folder = Path(name)
    bring_back(folder)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(
            f"{name} is a file: a model is a folder with config.json and weights in safetensors, as Hugging Face has them"
        )
    if nearest(str(name), EMBEDDED, cutoff=_MISTYPED):
        raise hub.no_model(str(name))  # a typing error is not sent to the Hub
    return hub.download(str(name))


def load(name: str | Path) -> SpeechLLM:
    """A speech LLM in float32, frozen, in eval mode.

    Raises:
        CheckpointError: not found, or a text-only LLM.
    """
    model = load_any(name)
    if isinstance(model, TextLLM):
        raise text_only(name)
    return model


def text_only(name: str | Path) -> CheckpointError:
    """What is said of a text LLM where speech is needed."""
    return CheckpointError(
        f"'{name}' is a text LLM without an audio encoder: only `analyze` and `prune` take those"
    )


def load_any(name: str | Path, *, stream: Stream = "off") -> SpeechLLM | TextLLM:
    """A speech LLM, or a text LLM when the folder holds nothing but one.

    Args:
        name: of the model.
        stream: whether the decoder stays on disk, see `streaming.py`; only `analyze` and `prune` work on such a model.

    Raises:
        CheckpointError: not found, not a whole model, or a speech LLM of a kind that is not known here.
    """
    folder = resolve(name)
    check_model_folder(folder)
    own = is_checkpoint(folder)
    family = None if own else find_family(folder)
    if not own and family is None:
        check_is_text(folder)
    streams = stream != "off" and chooses_streaming(_decoder_folder(folder, own, family), stream)
    if not streams:
        check_memory(folder)
    if own:
        model = load_checkpoint(folder, stream=streams)
        if str(name) in EMBEDDED:
            model.config = model.config.with_provenance(name=str(name))
        return model
    if family is not None:
        if family.layout == "own":
            return hub.load_ultravox(folder, stream=streams)
        return load_stock(folder, family, stream=streams)
    return TextLLM(*load_decoder(folder, stream=streams))


def _decoder_folder(folder: Path, own: bool, family: Family | None) -> Path:
    if own:
        return folder / DECODER_NAME
    return resolve(hub.text_model(folder)) if family is not None and family.layout == "own" else folder
