"""Ultravox checkpoints as Hugging Face hosts them: projector weights that name an audio and a text model of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from transformers import AutoConfig, WhisperForConditionalGeneration

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.device_runtime.base.suggestions import did_you_mean, nearest_paths
from prunella.speech_llm.checkpoint import load_decoder, load_weights
from prunella.speech_llm.config import AudioEncoderConfig, Prompt, SpeechLLMConfig
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_folder import why_unreadable

AUDIO_PLACEHOLDER = "<|audio|>"
TRANSCRIBE = "Transcribe the speech."
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_TWICE = ["consolidated*"]  # the same weights in Mistral's own layout


def download(model_id: str) -> Path:
    """Local folder of a Hugging Face id (safetensors and text files only; nothing that could run code).

    Raises:
        CheckpointError: no such id, or no network and nothing cached.
    """
    try:
        return Path(snapshot_download(model_id, allow_patterns=_FILES, ignore_patterns=_TWICE))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise no_model(model_id) from error


def no_model(name: str) -> CheckpointError:
    """What to say of a name that stands for nothing."""
    hint = did_you_mean(name, [*EMBEDDED, *nearest_paths(name)])
    return CheckpointError(
        f"no model '{name}': {hint}{' ' if hint else ''}It is neither a folder, an embedded model "
        "(`prunella models list`) nor a Hugging Face id that can be reached from here"
    )


def text_model(folder: Path) -> str:
    """The decoder that an Ultravox checkpoint names: a Hugging Face id or a folder."""
    return str(_config(folder)["text_model_id"])


def load_ultravox(folder: Path, *, stream: bool = False) -> SpeechLLM:
    """Assemble a `SpeechLLM` from an Ultravox checkpoint and the two models that it names.

    Raises:
        CheckpointError: an audio model that is no Whisper, a projector of the layout before v0.5, missing weights.
    """
    facts = _config(folder)
    if not facts.get("projector_ln_mid", False):
        raise CheckpointError(
            f"{folder} has the projector layout before Ultravox v0.5 (ln_post): use v0.5 or newer"
        )
    if facts.get("projector_act", "swiglu") != "swiglu":
        raise CheckpointError(
            f"{folder} has a '{facts['projector_act']}' projector: only swiglu is supported"
        )
    tensors = _tensors(folder)
    decoder, tokenizer = load_decoder(text_model(folder), stream=stream)
    decoder_view(decoder)  # refuses what does not fit, before anything else is read
    audio_model = facts["audio_model_id"]
    try:
        audio_config = AutoConfig.from_pretrained(audio_model, trust_remote_code=False)
        if audio_config.model_type != "whisper":
            raise CheckpointError(
                f"{folder} has a {audio_config.model_type} encoder: only Whisper is supported"
            )
        whisper = WhisperForConditionalGeneration.from_pretrained(
            audio_model, dtype=torch.float32, trust_remote_code=False
        )
    except CheckpointError:
        raise
    except Exception as error:  # of many libraries and classes
        raise CheckpointError(
            f"cannot load the audio encoder '{audio_model}' of {folder}: {why_unreadable(audio_model, error)}"
        ) from error
    before, after = _split_prompt(tokenizer)
    config = SpeechLLMConfig(
        audio_encoder=AudioEncoderConfig(
            **{name: getattr(audio_config, name) for name in AudioEncoderConfig.__dataclass_fields__}
        ),
        stack_factor=facts["stack_factor"],
        projector_hidden_size=facts["hidden_size"],
        text_hidden_size=decoder.config.hidden_size,
        prompt=Prompt(before, after, tokenizer.eos_token, AUDIO_PLACEHOLDER),
        provenance={"base_model": facts.get("_name_or_path") or folder.name},
    )
    model = SpeechLLM(config, decoder, tokenizer)
    encoder = {**whisper.model.encoder.state_dict(), **_under("audio_tower.", tensors)}
    load_weights(model.audio_encoder, encoder, folder)
    load_weights(model.projector, _under("multi_modal_projector.", tensors), folder)
    return model.eval().requires_grad_(False)


def _split_prompt(tokenizer: Any) -> tuple[str, str]:
    """The chat template around the audio, without a default system message."""
    message = {"role": "user", "content": f"{TRANSCRIBE}\n{AUDIO_PLACEHOLDER}"}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    before, found, after = text.partition(AUDIO_PLACEHOLDER)
    if not found:
        raise CheckpointError(
            "the decoder's chat template drops the audio placeholder: it cannot be used for speech"
        )
    return before, after


def _config(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return facts
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has no readable config.json ({error}): not a model folder"
        ) from error


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no dict
                if name.startswith(("audio_tower.", "multi_modal_projector.")):
                    found[name] = file.get_tensor(name).float()
    if not found:
        raise CheckpointError(
            f"{folder} holds no projector weights in safetensors: not an Ultravox checkpoint"
        )
    return found


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
