"""Which weights of the decoder are trained: LoRA through peft, over a base in float32, bfloat16 or 4 bits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import EngineError, UsageError
from prunella.healing.plan import HealingPlan
from prunella.healing.quantization_aware import HEAD_BLOCK, RoundedWeights, rounded
from prunella.pruning.blocks import Block
from prunella.pruning.history import pruned_blocks
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_folder import full_disks_are_os_errors

_ADAPTER = "default"


def lora_layers(spec: str, model: SpeechLLM) -> list[int]:
    """Decoder layers named by "all", "receiving" or a list such as "0,3:7", in order.

    "receiving" are the layers that now get what a pruned block used to produce, of all cuts that the model has seen.

    Raises:
        UsageError: not of this form, out of range, or "receiving" of a model that was not pruned.
    """
    count = len(model.layers)
    if spec == "all":
        return list(range(count))
    if spec == "receiving":
        blocks = pruned_blocks(model)
        if not blocks:
            raise UsageError(
                "this model was not pruned, so no layer receives: use --lora all, or name layers (0,3:7)"
            )
        removed, layers = 0, []
        for block in blocks:
            layers.append(min(block.start - removed, count - 1))
            removed += len(block)
        return sorted(set(layers))
    chosen: set[int] = set()
    for part in spec.split(","):
        if re.fullmatch(r"\s*\d+\s*", part):
            chosen.add(int(part))
        elif re.fullmatch(r"\s*\d+\s*:\s*\d+\s*", part):
            chosen.update(Block.parse(part).layers)
        else:
            raise UsageError(f"no layers '{spec}': write all, receiving, or numbers and ranges such as 0,3:7")
    if max(chosen) >= count:
        raise UsageError(f"there is no layer {max(chosen)}: the decoder has layers 0 to {count - 1}")
    return sorted(chosen)


class TrainableDecoder:
    """Makes a decoder trainable in place, and an ordinary decoder again afterwards.

    Frozen weights are held in the compute precision during training; their originals are kept in main memory, so that
    the LoRA is merged into the exact weights and not into rounded ones.
    """

    def __init__(
        self, decoder: PreTrainedModel, layers: Sequence[int], plan: HealingPlan, precision: str
    ) -> None:
        self.decoder = decoder
        self.config: LoraConfig | None = None
        self._originals: dict[nn.Parameter, torch.Tensor] = {}
        self._linears: dict[str, nn.Linear] = {}
        self._tied = decoder.config.tie_word_embeddings
        decoder.requires_grad_(False)
        decoder.config.use_cache = False
        self._attention = decoder.config._attn_implementation  # noqa: SLF001
        stack = decoder_view(decoder).layers
        chosen = [f".{name}" for name in _linear_names(decoder, [stack[index] for index in layers])]
        if plan.base_bits == 4:
            self._quantize(_linear_names(decoder, list(stack)), precision)
        if plan.rank and chosen:  # none are where projector or encoder alone are trained
            names = [name.removeprefix(".") for name in chosen]
            self.config = LoraConfig(
                r=plan.rank,
                lora_alpha=plan.scaling_alpha,  # type: ignore[arg-type]  # peft takes floats too
                lora_dropout=plan.lora_dropout,
                target_modules=names,
            )
            torch.manual_seed(plan.seed)
            inject_adapter_in_model(self.config, decoder, _ADAPTER)
            for module in self.tuned().values():
                # Under autocast the products cast anyway; peft's own cast would copy each input once more.
                module.cast_input_dtype_enabled = False
        else:
            for index in layers:
                stack[index].requires_grad_(True)
        for name, parameter in decoder.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)
            elif precision == "bf16" and not parameter.requires_grad and parameter.dtype == torch.float32:
                self._originals[parameter] = parameter.data
                parameter.data = parameter.data.to(torch.bfloat16)

        self.rounded: RoundedWeights | None = None
        if plan.rounding:
            self.rounded = RoundedWeights(self._roundable(), plan.rounding)
            head: Any = decoder_view(decoder).head
            exact = self._exact(head.weight)  # before `data` is asked for: it puts other data there
            head.weight.data.copy_(rounded(exact.float(), HEAD_BLOCK))

    def _roundable(self) -> Iterator[tuple[nn.Parameter, torch.Tensor, Callable[[], torch.Tensor]]]:
        for module in self.tuned().values():
            weight = module.get_base_layer().weight
            yield weight, self._exact(weight), partial(module.get_delta_weight, _ADAPTER)

    def _exact(self, weight: nn.Parameter) -> torch.Tensor:
        """What a frozen weight is before it is rounded; kept for `merge`."""
        if weight not in self._originals:
            self._originals[weight] = weight.data
            weight.data = weight.data.clone()
        return self._originals[weight]

    def merge(self) -> None:
        """Fold the LoRA into the original weights; the decoder is then what it was, with other numbers."""
        for parameter, original in self._originals.items():
            parameter.data = original
        for name, module in self.tuned().items():
            base = self._linears.get(name, module.get_base_layer())
            delta = module.get_delta_weight(_ADAPTER).detach()
            base.weight.data += delta.to(base.weight.device, base.weight.dtype)
            _replace(self.decoder, name, base)
        for name, linear in self._linears.items():
            _replace(self.decoder, name, linear)
        for attribute in ("is_loaded_in_4bit", "peft_config", "_hf_peft_config_loaded"):
            self.decoder.__dict__.pop(attribute, None)
        self.decoder.float()
        if self._tied:
            self.decoder.tie_weights()
        self.decoder.config.use_cache = True
        self.decoder.set_attn_implementation(self._attention)
        self.decoder.eval().requires_grad_(False)

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA alone, as stock peft loads it on the decoder that training began with."""
        if self.config is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name, module in self.tuned().items():
            for part in ("lora_A", "lora_B"):
                weight = getattr(module, part)[_ADAPTER].weight
                tensors[f"base_model.model.{name}.{part}.weight"] = weight.detach().cpu().contiguous()
        with full_disks_are_os_errors():
            save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        self.config.save_pretrained(str(folder))

    def tuned(self) -> dict[str, Any]:
        return {
            name: module
            for name, module in self.decoder.named_modules()
            if isinstance(module, BaseTunerLayer)
        }

    def _quantize(self, names: Sequence[str], precision: str) -> None:
        bits = _bitsandbytes()
        for name in names:
            linear: Any = self.decoder.get_submodule(name)
            self._linears[name] = linear
            small = bits.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                compute_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
                quant_type="nf4",
            )
            small.weight = bits.nn.Params4bit(
                linear.weight.data.clone(), requires_grad=False, quant_type="nf4"
            )
            small.bias = linear.bias
            _replace(self.decoder, name, small)
        setattr(self.decoder, "is_loaded_in_4bit", True)  # noqa: B010 - unknown to nn.Module's types


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise EngineError(
            "4-bit base weights need bitsandbytes: pip install bitsandbytes, or train without --base-bits"
        ) from error
    if not torch.cuda.is_available() and "cpu" not in getattr(bitsandbytes, "supported_torch_devices", ()):
        raise EngineError(
            "this bitsandbytes has no 4-bit kernels for the CPU: update it, or train without --base-bits"
        )
    return bitsandbytes


def _linear_names(decoder: PreTrainedModel, layers: Sequence[nn.Module]) -> list[str]:
    inside = {id(module) for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)}
    return [name for name, module in decoder.named_modules() if id(module) in inside]


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
