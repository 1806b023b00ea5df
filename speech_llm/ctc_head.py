"""A CTC head on the audio encoder: which letter is spoken in every 40 ms or so, known before the decoder says a word.

An LLM that has heard a few hours of speech writes words that it knows, near or not ("buffoon" for "buffalo"). Letters need
no vocabulary: the same hours teach this small head to spell what it hears. At decoding both are weighed
(`device_runtime/decoding/beam_search.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from prunella.speech_llm.config import Count, ModelConfig

ENGLISH = " abcdefghijklmnopqrstuvwxyz'"
_WANTED = 640  # samples of an output frame, 25 a second: people speak about 15 letters
_BLOCKS = 5
_KERNEL = 15  # output frames that a block sees: 0.6 s, a word and its neighbours
_EXPANSION = 2
_DROPOUT = 0.1


@dataclass(frozen=True)
class CtcFrames:
    """How encoder frames become the head's: every so many of them are one, or one of them is several.

    Attributes:
        stride: encoder frames from one output frame to the next.
        repeats: output frames that are made of one encoder frame; 1 unless the stride is.
        samples: of one output frame.
    """

    stride: int
    repeats: int
    samples: float

    @staticmethod
    def of(config: ModelConfig) -> CtcFrames:
        """As near to 25 a second as the encoder's own rate allows: 50 → 25, 25 → 25, Qwen3-ASR's 13 → 26."""
        stride = max(1, round(_WANTED / config.samples_per_frame))
        repeats = max(1, round(config.samples_per_frame / _WANTED))
        return CtcFrames(stride, repeats, config.samples_per_frame * stride / repeats)

    def count(self, frames: Count) -> Count:
        """Output frames of so many encoder frames; of one number, or a tensor of them."""
        return (frames + self.stride - 1) // self.stride * self.repeats


class CtcHead(nn.Module):
    """LayerNorm → windows of encoder frames → ConvNeXt blocks → LayerNorm → classes, as wide as the encoder throughout.

    A window is the frames of a stride and one neighbor on each side; where an encoder frame is long it gives several rows.
    Convolutions, because the encoder's attention has looked at the whole utterance already. A window is concatenated slices,
    so that it is one matrix product, which recipes quantise like others.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.frames = CtcFrames.of(config)
        self.norm = nn.LayerNorm(width)
        self.window = nn.Linear((self.frames.stride + 2) * width, self.frames.repeats * width)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(_BLOCKS))
        self.norm_out = nn.LayerNorm(width)
        self.classes = nn.Linear(width, 1 + len(config.ctc_alphabet))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, encoded: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, width) encoder frames → (batch, `self.frames.count(frames)`, classes) log-probabilities.

        Class 0 is the blank. `frames` (batch,): true frames of each row when rows were padded; the rows' own outputs are
        unchanged by it.
        """
        count, stride = encoded.shape[1], self.frames.stride
        heard = self.dropout(_cut(self.norm(encoded), frames))
        # One neighbor before; behind it one, and what the last stride may lack.
        padded = nn.functional.pad(heard, (0, 0, 1, stride))
        windows = torch.cat([padded[:, i : i + count : stride] for i in range(stride + 2)], dim=-1)
        hidden = self.window(windows)
        if self.frames.repeats > 1:
            hidden = hidden.unflatten(-1, (self.frames.repeats, -1)).flatten(1, 2)
        inside = None if frames is None else self.frames.count(frames)
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


def alphabet_of(letters: str) -> str:
    """These letters as an alphabet: a space first, lower case, each once.

    >>> alphabet_of("ABBA")
    ' ab'
    """
    return "".join(dict.fromkeys(" " + letters.lower()))


def letters_of(texts: Iterable[str]) -> str:
    """English letters, and behind them, in the order of their code points, the others that these texts are written with.

    >>> letters_of(["Grüße, 2 Übel"])[len(ENGLISH) :]
    'ßü'
    """
    found = {letter for text in texts for letter in text.lower()}
    # Marks too, such as the vowels of Devanagari.
    others = sorted(letter for letter in found - set(ENGLISH) if unicodedata.category(letter)[0] in "LM")
    return ENGLISH + "".join(others)


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
