"""Taking layers out of a decoder so that every runtime can load what is left."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import CheckpointError, UsageError
from prunella.pruning.blocks import Block, check_blocks
from prunella.speech_llm.batches import SpeechExample, all_logits, speech_batch
from prunella.speech_llm.checkpoint import load_decoder
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.stock import reload_stock
from prunella.speech_llm.streaming import stream_of
from prunella.speech_llm.torch_engine import model_features

# Of configurations: lists with one value for every layer.
_LAYER_VALUES = frozenset(
    {
        "layer_types",
        "layers_block_type",
        "mlp_layer_types",
        "indexer_types",
        "no_rope_layers",
        "layer_rope_theta",
        "sliding_windows",
        "num_attention_heads_per_layer",
        "num_key_value_heads_per_layer",
        "intermediate_size",
        "activation_sparsity_pattern",
        "layers_num_experts",
        "moe_topk",
        "swiglu_limits",
        "swiglu_limits_shared",
    }
)
# Lists of the numbers of layers, not of one value for each.
_LAYER_NUMBERS = ("mlp_only_layers", "full_attn_idxs", "attn_layer_indices")
# Lists that have nothing to do with layers, whatever their length.
_NO_LAYERS = re.compile(r".*_token_ids?|.*_tokens|architectures|.*rope.*_(factor|section)s?|mrope_section")
RELOAD_TOLERANCE = 1e-4  # of logits between the model in memory and the one read back, both float32


def drop_layers(decoder: PreTrainedModel, blocks: Sequence[Block]) -> PreTrainedModel:
    """A decoder without the layers of `blocks`. It shares its weights with `decoder`, which is left as it was.

    Cache slots (`layer_idx`) are renumbered and the per-layer lists of the configuration are cut alike.

    Raises:
        UsageError: blocks that do not exist, or that shift a pattern which runtimes derive from a layer's number.
        CheckpointError: a configuration with something per layer that is not known here.
    """
    count = len(decoder_view(decoder))
    removed = {layer for block in check_blocks(blocks, count) for layer in block.layers}
    kept = [layer for layer in range(count) if layer not in removed]
    _refuse_shifted_pattern(decoder, kept)
    pruned = share_weights(decoder)
    view = decoder_view(pruned)
    view.body.layers = nn.ModuleList([view.layers[index] for index in kept])
    for index, layer in enumerate(view.body.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 - unknown to nn.Module's types
    _slice_config(pruned, kept, count)
    return pruned


def share_weights(decoder: PreTrainedModel) -> PreTrainedModel:
    """A copy of the module tree around the same parameters."""
    tensors = [*decoder.parameters(), *decoder.buffers()]
    return copy.deepcopy(decoder, {id(tensor): tensor for tensor in tensors})


@dataclass(frozen=True)
class ReloadCheck:
    """Largest difference of logits between the model in memory and the one read back."""

    max_logit_difference: float


@torch.inference_mode()
def check_reload(decoder: PreTrainedModel, folder: str | Path) -> ReloadCheck:
    """Load the decoder saved in `folder` and compare it logit by logit with `decoder`.

    Raises:
        CheckpointError: the logits differ by more than `RELOAD_TOLERANCE`, or it does not load.
    """
    streams = stream_of(decoder) is not None
    reloaded, _ = load_decoder(folder, stream=True) if streams else load_decoder(folder)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(decoder.config.vocab_size, (2, 24), generator=generator)
    if not streams:
        return _compared(decoder(tokens).logits, reloaded(tokens).logits, folder)
    both = [all_logits(one, decoder_view(one).embeddings(tokens)) for one in (decoder, reloaded)]
    return _compared(both[0], both[1], folder)


@torch.inference_mode()
def check_stock_reload(model: SpeechLLM, folder: Path) -> ReloadCheck:
    """Read the checkpoint of a stock class in `folder` back and compare it with `model`, sound and text in, at all positions.

    Raises:
        CheckpointError: as `check_reload`.
    """
    generator = torch.Generator().manual_seed(0)
    sound: Float32 = (0.1 * torch.randn(21_000, generator=generator)).numpy()
    tokens = torch.randint(model.view.vocab_size, (24,), generator=generator).tolist()
    logits = []
    for one in (model, reload_stock(model, folder)):
        heard, valid = model_features(one, sound)
        batch = speech_batch(one, [SpeechExample(heard, tuple(tokens), valid)])
        logits.append(all_logits(one.decoder, batch.inputs_embeds))
    return _compared(logits[0], logits[1], folder)


def _compared(expected: torch.Tensor, found: torch.Tensor, folder: str | Path) -> ReloadCheck:
    if not expected.isfinite().all():
        raise CheckpointError(
            "the model's logits are not finite, cut or not: it is damaged, or was never trained in float32"
        )
    difference = float((expected - found).abs().max())
    # Not `>`: a NaN must fail too.
    if not difference <= RELOAD_TOLERANCE:
        raise CheckpointError(
            f"{folder} read back differs by {difference:.2g} in its logits from the model in memory"
        )
    return ReloadCheck(difference)


def _slice_config(decoder: PreTrainedModel, kept: Sequence[int], count: int) -> None:
    config: Any = decoder.config
    _name_dense_layers(config, count)
    own = _settings_by_layer(config)
    for name, value in list(vars(config).items()):
        if name in _LAYER_NUMBERS:
            setattr(config, name, [kept.index(layer) for layer in value or () if layer in kept])
        elif isinstance(value, list | tuple) and len(value) == count and not _NO_LAYERS.fullmatch(name):
            if name not in _LAYER_VALUES:
                raise CheckpointError(
                    f"{config.model_type}'s configuration has '{name}', as many values as layers, and prunella does not know "
                    "whether a cut should cut it: this family cannot be cut yet (add it to pruning/surgery.py)"
                )
            setattr(config, name, [value[index] for index in kept])
        elif isinstance(value, dict) and value and "layer" in name:
            raise CheckpointError(
                f"{config.model_type}'s configuration has '{name}' by number of the layer, which a cut would shift: "
                "this family cannot be cut yet (add it to pruning/surgery.py)"
            )
    config.num_hidden_layers = len(kept)
    if own:
        config.per_layer_config = {
            place: own[layer] for place, layer in enumerate(kept) if own.get(layer)
        } or None


def _settings_by_layer(config: Any) -> dict[int, dict[str, Any]]:
    """What transformers keeps apart for single layers (`per_layer_config`), taken out of the configuration."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    own = {int(layer): settings for layer, settings in config.to_dict()["per_layer_config"].items()}
    config.per_layer_config = None
    return own


def _name_dense_layers(config: Any, count: int) -> None:
    """Every so many layers have experts (Qwen's MoE): the others by their numbers, which a cut can renumber."""
    step = getattr(config, "decoder_sparse_step", None) or 1
    if step == 1:
        return
    named = set(config.mlp_only_layers or ())
    config.mlp_only_layers = [layer for layer in range(count) if layer in named or (layer + 1) % step]
    config.decoder_sparse_step = 1


def _refuse_shifted_pattern(decoder: PreTrainedModel, kept: Sequence[int]) -> None:
    # llama.cpp computes SmolLM3's layers without rotary embedding from the layer's number (every fourth).
    pattern = getattr(decoder.config, "no_rope_layers", None)
    if not pattern:
        return
    left = [pattern[index] for index in kept]
    if left != list(pattern[: len(kept)]):
        interval = getattr(decoder.config, "no_rope_layer_interval", 4)
        raise UsageError(
            f"this cut shifts {decoder.config.model_type}'s pattern of layers without rotary embedding, which runtimes "
            f"derive from the layer's number: cut whole groups of {interval} layers"
        )
