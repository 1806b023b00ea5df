"""One way to look at a decoder: where a transformers causal LM keeps what pruning, healing and export ask for.

Families differ in where they put things and in what they multiply by on the way (Granite, Gemma, Cohere); whoever cuts,
trains or writes a decoder asks its view, so that what a family needs is known in one place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from prunella.device_runtime.base.errors import CheckpointError

_INPUT_SCALES = ("embedding_multiplier", "mup_embedding_multiplier")  # names of it in configurations


@dataclass(frozen=True)
class DecoderView:
    """Made by `decoder_view`. It holds no weights of its own and sees every later change of them.

    decoder: the model itself. body: it without its head. layers: in order, the list that the body runs.
    """

    decoder: PreTrainedModel
    body: nn.Module
    layers: nn.ModuleList

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self._text_config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of logits, padding of the table included."""
        return int(self._text_config.vocab_size)

    @property
    def embeddings(self) -> nn.Module:
        """Token ids (..., n) int64 → what the body takes of them, (..., n, hidden)."""
        return self.decoder.get_input_embeddings()

    def token_table(self) -> torch.Tensor:
        """(vocabulary, hidden) float32: what `embeddings` gives for every token."""
        rows: Any = self.embeddings.weight
        with torch.no_grad():
            # Detached: training with checkpoints hooks a gradient to all that is looked up.
            table: torch.Tensor = self.embeddings(torch.arange(len(rows), device=rows.device))
            return table.detach().float()

    @property
    def head(self) -> nn.Module:
        """The matrix behind the final norm; `logits` is all that becomes of a hidden state."""
        head: nn.Module = self.decoder.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers'
        return head

    @property
    def residual_scale(self) -> float:
        """What attention's and the MLP's outputs are multiplied by before they are added to the residual stream (Granite)."""
        return float(getattr(self._text_config, "residual_multiplier", None) or 1.0)

    @property
    def input_scale(self) -> float:
        """What the body multiplies all inputs by, those of audio too (Granite)."""
        return input_scale(vars(self._text_config))

    @property
    def lookup_scale(self) -> float:
        """What the embedding layer multiplies a row of its table by (Gemma: the root of the hidden size).

        Raises:
            CheckpointError: a layer of a kind that may do more than look up and multiply.
        """
        scale = getattr(self.embeddings, "scalar_embed_scale", None)
        if scale is None and type(self.embeddings) is not nn.Embedding:
            raise CheckpointError(
                f"the decoder's embedding layer is a {type(self.embeddings).__name__}, whose factor is not known: "
                "add it to speech_llm/decoder_view.py"
            )
        return 1.0 if scale is None else float(scale)

    @property
    def embedding_scale(self) -> float:
        """What a row of the table is multiplied by on its whole way to the first layer.

        Raises:
            CheckpointError: as `lookup_scale`.
        """
        return self.lookup_scale * self.input_scale

    def down_projection(self, layer: int) -> nn.Linear:
        """The last matrix of a layer's MLP.

        Raises:
            CheckpointError: the layer has none, or one that is no plain matrix (experts, adapters).
        """
        found = getattr(getattr(self.layers[layer], "mlp", None), "down_proj", None)
        if not isinstance(found, nn.Linear):
            raise CheckpointError(f"layer {layer} has no MLP with a plain down projection")
        return found

    def has_norm_behind_mlp(self, layer: int) -> bool:
        """Whether a layer norms what its MLP says before adding it to the residual stream (Gemma 2 and 3, OLMo 2)."""
        names = [name for name, _ in self.layers[layer].named_children()]
        return any("post_feedforward" in name or "post_mlp" in name for name in names)

    def run(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, length, hidden) → the same shape behind the final norm, as `logits` takes it; nothing is cached.

        `attention_mask` (batch, length) int64; none needed where padding is on the right, which causal positions never see.
        """
        output = self.body(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def run_until(
        self, state: int, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> None:
        """Run up to hidden state number `state` (before layer `state`) and no further, for those who watch the layers."""
        if state >= len(self):
            self.run(inputs_embeds, attention_mask)
            return

        def stop(_: torch.Tensor) -> None:
            raise _Reached

        handle = self.watch_input(state, stop)
        try:
            self.run(inputs_embeds, attention_mask)
        except _Reached:
            pass
        finally:
            handle.remove()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) behind the final norm → (..., vocabulary), by the model's own forward.

        Its own, because families scale behind the matrix (Granite, Cohere) or cap (Gemma 2).
        """
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        model = copy.copy(self.decoder)  # the same modules under another body; the model itself is left alone
        model.__dict__["_modules"] = {**self.decoder._modules, self.decoder.base_model_prefix: _Done(rows)}  # noqa: SLF001
        found: torch.Tensor = model(inputs_embeds=rows, use_cache=False).logits
        return found.reshape(*hidden.shape[:-1], found.shape[-1])

    def watch_input(self, layer: int, keep: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Call `keep` with what the layer gets (batch, length, hidden), at every pass until the handle is removed."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(args[0] if args else kwargs["hidden_states"])

        return self.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)

    def watch_output(self, layer: int, keep: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Call `keep` with what the layer makes (batch, length, hidden), at every pass until the handle is removed."""

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            keep(output[0] if isinstance(output, tuple) else output)

        return self.layers[layer].register_forward_hook(hook)

    def watch_activations(self, layer: int, keep: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Call `keep` with what the layer's down projection gets (batch, length, features). Raises as `down_projection`."""

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            keep(args[0])

        return self.down_projection(layer).register_forward_pre_hook(hook)

    @property
    def _text_config(self) -> Any:
        return self.decoder.config.get_text_config()


def decoder_view(decoder: PreTrainedModel) -> DecoderView:
    """The view of a causal LM.

    Raises:
        CheckpointError: an architecture that keeps its layers somewhere else, or gives them inputs that audio has not.
    """
    body: Any = decoder.base_model
    layers = getattr(body, "layers", None)
    if body is decoder or not isinstance(layers, nn.ModuleList):
        raise CheckpointError(
            f"{type(decoder).__name__} has no plain list of layers: "
            "supported are decoders of the Llama kind (Llama, Mistral, Qwen2, Qwen3, SmolLM3, Gemma, Phi-3, ...)"
        )
    if getattr(decoder.config, "hidden_size_per_layer_input", 0):
        raise CheckpointError(
            f"{type(decoder).__name__} gives every layer embeddings of its own, which audio has not: "
            "Gemma 3n and Gemma 4 of that kind are not supported, take Gemma 2 or another family"
        )
    return DecoderView(decoder, body, layers)


def input_scale(config: Mapping[str, Any]) -> float:
    """`DecoderView.input_scale` of a decoder whose configuration alone is there."""
    return float(next((config[name] for name in _INPUT_SCALES if config.get(name)), 1.0))


class _Reached(Exception):
    """The forward pass got as far as it is needed."""


class _Done(nn.Module):
    """A body that has run already."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, *_: Any, **__: Any) -> _Hidden:
        return _Hidden(last_hidden_state=self._hidden)


class _Hidden(MoeModelOutputWithPast):
    """Of all that heads hand on from a body of whatever family, the hidden state alone is there."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
