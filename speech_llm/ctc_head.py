"""A CTC head on the audio encoder: which letter is spoken in every 40 ms, known before the decoder says a word.

An LLM that has heard a few hours of speech writes words that it knows, near or not ("buffoon" for "buffalo"). Letters need
no vocabulary: the same hours teach this small head to spell what it hears. At decoding both are weighed
(`device_runtime/decoding/beam_search.py`).
"""

from __future__ import annotations

import torch
from torch import nn

from prunella.speech_llm.config import ModelConfig

ENGLISH = " abcdefghijklmnopqrstuvwxyz'"
_STRIDE = 2  # 25 frames a second: people speak about 15 letters
_WINDOW = 4  # encoder frames that one output frame is made of
_BLOCKS = 5
_KERNEL = 15  # output frames that a block sees: 0.6 s, a word and its neighbours
_EXPANSION = 2
_DROPOUT = 0.1
SAMPLES_PER_CTC_FRAME = 320 * _STRIDE  # an encoder frame is 320 samples


class CtcHead(nn.Module):
    """LayerNorm → 4 frames, every second → ConvNeXt blocks → LayerNorm → classes, as wide as the encoder throughout.

    Convolutions, because the encoder's attention has looked at the whole utterance already. A window is concatenated slices,
    so that it is one matrix product, which recipes quantise like others.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.norm = nn.LayerNorm(width)
        self.window = nn.Linear(_WINDOW * width, width)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(_BLOCKS))
        self.norm_out = nn.LayerNorm(width)
        self.classes = nn.Linear(width, 1 + len(config.ctc_alphabet))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, encoded: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, d_model) encoder frames → (batch, ceil(frames / 2), classes) log-probabilities; class 0 is the blank.

        `frames` (batch,): true frames of each row when rows were padded; the rows' own outputs are unchanged by it.
        """
        count = encoded.shape[1]
        heard = self.dropout(_cut(self.norm(encoded), frames))
        # The middle two of four are the frame's own; one more zero behind for an odd number of frames.
        padded = nn.functional.pad(heard, (0, 0, 1, 2))
        windows = torch.cat([padded[:, i : i + count : _STRIDE] for i in range(_WINDOW)], dim=-1)
        hidden = self.window(windows)
        inside = None if frames is None else ctc_frames(frames)
        for block in self.blocks:
            hidden = block(hidden, inside)
        logits: torch.Tensor = self.classes(self.dropout(self.norm_out(hidden)))
        return logits.float().log_softmax(-1)


class ConvBlock(nn.Module):
    """A ConvNeXt block over time (Liu et al. 2022, "A ConvNet for the 2020s", section 2.6); adds nothing until it has learned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # This spelling is in checkpoints.
        self.neighbours = nn.Conv1d(width, width, _KERNEL, padding=_KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, _EXPANSION * width)
        self.contract = nn.Linear(_EXPANSION * width, width)
        self.dropout = nn.Dropout(_DROPOUT)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, hidden: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, width) → the same shape; `frames` (batch,) true frames of each row."""
        around = self.neighbours(_cut(hidden, frames).transpose(1, 2)).transpose(1, 2)
        change = self.contract(nn.functional.gelu(self.expand(self.norm(around))))
        changed: torch.Tensor = hidden + self.dropout(change)
        return changed


def ctc_frames(frames: torch.Tensor) -> torch.Tensor:
    """Output frames of so many encoder frames."""
    return (frames + _STRIDE - 1) // _STRIDE


def letter_classes(text: str, alphabet: str) -> list[int]:
    """Classes of a text's letters, any case; what is no letter of the alphabet counts as a space.

    >>> letter_classes("It's 9 a", ENGLISH)
    [10, 21, 28, 20, 1, 2]
    """
    known = "".join(letter if letter in alphabet else " " for letter in text.lower())
    return [alphabet.index(letter) + 1 for letter in " ".join(known.split())]


def read_letters(log_probabilities: torch.Tensor, alphabet: str) -> str:
    """(frames, classes) → the most likely class of each frame, repeats joined, blanks dropped."""
    said = torch.unique_consecutive(log_probabilities.argmax(-1)).tolist()
    return " ".join("".join(alphabet[kind - 1] for kind in said if kind).split())


def _cut(rows: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Zeros behind each row's own end."""
    if lengths is None:
        return rows
    inside = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    return rows * inside[..., None]
