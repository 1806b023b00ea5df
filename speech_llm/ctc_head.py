"""A CTC head on the audio encoder: which letter is spoken in every 40 ms, known before the decoder says a word.

An LLM that has heard a few hours of speech writes words that it knows, near or not ("buffoon" for "buffalo"). Letters need
no vocabulary: the same hours teach this small head to spell what it hears. At decoding both are weighed
(`device_runtime/beam_search.py`).
"""

from __future__ import annotations

import torch
from torch import nn

from prunella.speech_llm.config import SpeechLLMConfig

ENGLISH = " abcdefghijklmnopqrstuvwxyz'"
_HIDDEN = 256
_STRIDE = 2  # 25 frames a second: people speak about 15 letters
_WINDOW = 6  # encoder frames that one output frame sees first
_CONTEXT = 7  # and output frames that it sees then
_DROPOUT = 0.2
SAMPLES_PER_CTC_FRAME = 320 * _STRIDE  # an encoder frame is 320 samples


class CtcHead(nn.Module):
    """Two windowed linear layers: LayerNorm → 6 frames, every second → GELU → 7 neighbours → GELU, residual → classes.

    Windows are concatenated slices, so that each layer is one matrix product, which recipes quantise like others.
    """

    def __init__(self, config: SpeechLLMConfig) -> None:
        super().__init__()
        width = config.audio_encoder.d_model
        self.norm = nn.LayerNorm(width)
        self.window = nn.Linear(_WINDOW * width, _HIDDEN)
        self.context = nn.Linear(_CONTEXT * _HIDDEN, _HIDDEN)
        self.classes = nn.Linear(_HIDDEN, 1 + len(config.ctc_alphabet))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, encoded: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, d_model) encoder frames → (batch, ceil(frames / 2), classes) log-probabilities; class 0 is the blank.

        `frames` (batch,): true frames of each row when rows were padded; the rows' own outputs are unchanged by it.
        """
        count = encoded.shape[1]
        heard = self.dropout(_cut(self.norm(encoded), frames))
        # As many zeros before as behind the middle two of six; one more behind for an odd number of frames.
        padded = nn.functional.pad(heard, (0, 0, 2, 3))
        windows = torch.cat([padded[:, i : i + count : _STRIDE] for i in range(_WINDOW)], dim=-1)
        hidden = _cut(
            nn.functional.gelu(self.window(windows)), None if frames is None else ctc_frames(frames)
        )
        half = _CONTEXT // 2
        around = nn.functional.pad(self.dropout(hidden), (0, 0, half, half))
        length = hidden.shape[1]
        neighbours = torch.cat([around[:, i : i + length] for i in range(_CONTEXT)], dim=-1)
        hidden = hidden + nn.functional.gelu(self.context(neighbours))
        return self.classes(self.dropout(hidden)).float().log_softmax(-1)


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
