"""Granite Speech's Conformer, and the Q-Former that makes three tokens of fifteen of its rows, for audio of any length."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class ConformerEncoder(nn.Module):
    """`GraniteSpeechCTCEncoder` that is told where the audio ends, and can be exported.

    The stock one hears all of its input, so that in a batch the shorter audio hears the padding; attention is over blocks,
    the last of which is masked behind its rows.

    Args:
        tower: the stock encoder.
        kept: layers whose rows go in front of the last one's, the input's being 0 (`cat_hidden_layers`).
    """

    def __init__(self, tower: PreTrainedModel, kept: Collection[int] = ()) -> None:
        super().__init__()
        self.tower = tower
        self.kept = frozenset(kept)
        self.block = int(tower.config.context_size)

    def forward(self, features: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, bins, rows); `valid` (batch,) → (batch, rows, width), zeros behind the valid ones: the projector hears them."""
        tower: Any = self.tower
        hidden: torch.Tensor = tower.input_linear(features.transpose(1, 2))
        place = torch.arange(hidden.shape[1], device=hidden.device)
        inside = place[None] < (hidden.shape[1] if valid is None else valid[:, None])
        kept = [hidden] if 0 in self.kept else []
        mask = self._mask(inside, hidden.dtype)
        for number, layer in enumerate(tower.layers, start=1):
            hidden = hidden + 0.5 * layer.ff1(hidden)
            hidden = hidden + self._attend(layer.attn, hidden, mask)
            hidden = hidden + _convolve(layer.conv, hidden, inside)
            hidden = layer.post_norm(hidden + 0.5 * layer.ff2(hidden))
            if number == len(tower.layers) // 2:  # what it would write so far
                hidden = hidden + tower.out_mid(tower.out(hidden).softmax(-1))
            if number in self.kept:
                kept.append(hidden)
        return torch.cat([*kept, hidden], dim=-1) * inside[..., None]

    def train(self, mode: bool = True) -> ConformerEncoder:
        """As ever, but for the norms over the batch: what they go by was learned from more speech than is ever here."""
        super().train(mode)
        tower: Any = self.tower
        for layer in tower.layers:
            layer.conv.batch_norm.eval()
        return self

    def _mask(self, inside: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(batch, rows) → (batch * blocks, 1, 1, block): the least number at keys that are not audio's."""
        heard = self._blocks(inside[..., None])[..., 0]
        bias = torch.zeros(heard.shape, dtype=dtype, device=heard.device)
        return bias.masked_fill(~heard, torch.finfo(dtype).min)[:, None, None, :]

    def _blocks(self, rows: torch.Tensor) -> torch.Tensor:
        """(batch, n, width) → (batch * blocks, block, width), zeros behind the last."""
        batch, count, width = rows.shape
        blocks = (count + self.block - 1) // self.block
        behind = rows.new_zeros(batch, blocks * self.block - count, width)
        return torch.cat([rows, behind], dim=1).reshape(batch * blocks, self.block, width)

    def _attend(self, attention: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, count, _ = hidden.shape
        normed = attention.pre_norm(hidden)
        keys_values = attention.to_kv(normed).chunk(2, dim=-1)
        query, key, value = (
            self._blocks(part)
            .reshape(-1, self.block, attention.num_heads, attention.dim_head)
            .transpose(1, 2)
            for part in (attention.to_q(normed), *keys_values)
        )
        scores = query @ key.transpose(2, 3) + _shifted(query @ self._distances(attention))
        mixed = (scores * attention.scale + mask).softmax(-1) @ value
        rows = mixed.transpose(1, 2).reshape(batch, -1, attention.num_heads * attention.dim_head)
        out: torch.Tensor = attention.to_out(rows[:, :count])
        return out

    def _distances(self, attention: Any) -> torch.Tensor:
        """(head width, 2 * block - 1): embeddings of how far a key is before the query, the farthest first."""
        table: torch.Tensor = attention.rel_pos_emb.weight
        middle, reach = attention.max_pos_emb, self.block - 1
        return table[middle - reach : middle + reach + 1].flip(0).T


def _shifted(products: torch.Tensor) -> torch.Tensor:
    """(..., n, 2n - 1) products with every distance from n - 1 down → (..., n, n), those with the distance to each key."""
    *outer, count, width = products.shape
    padded = nn.functional.pad(products, (1, 0)).reshape(*outer, width + 1, count)
    return padded[..., 1:, :].reshape(*outer, count, width)[..., :count]


def _convolve(module: Any, hidden: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Over (batch, rows, width), with zeros behind the audio as behind the input's end."""
    gated = module.glu(module.up_conv(module.norm(hidden).transpose(1, 2)))
    mixed = module.silu(module.batch_norm(module.depth_conv(gated * inside[:, None, :])))
    rows: torch.Tensor = module.down_conv(mixed).transpose(1, 2)
    return rows


class WindowProjector(nn.Module):
    """`GraniteSpeechEncoderProjector` for lengths that a graph learns when it runs."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, n, width) → (batch, tokens, hidden), the last window filled up with zeros."""
        projector: Any = self.projector
        batch, count, width = frames.shape
        windows = (count + projector.window_size - 1) // projector.window_size
        behind = frames.new_zeros(batch, windows * projector.window_size - count, width)
        whole = torch.cat([frames, behind], dim=1).reshape(batch * windows, projector.window_size, width)
        found = projector.qformer(
            query_embeds=projector.query, encoder_hidden_states=whole, encoder_attention_mask=None
        ).last_hidden_state
        tokens: torch.Tensor = projector.linear(found.reshape(batch, windows * projector.num_queries, -1))
        return tokens
