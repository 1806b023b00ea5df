"""What one pass of training takes, padded to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn

from prunella.speech_llm.batches import IGNORE
from prunella.speech_llm.model import SpeechLLM

_PLACEHOLDER = 0  # token id where audio goes; its embedding is overwritten


@dataclass(frozen=True)
class PassInputs:
    """Padded inputs of one forward pass over `batch` clips.

    features (batch, frames, d_model), or (batch, mel_frames, num_mel_bins) where the encoder is trained; frames (batch,)
    encoder frames, and `valid` (batch,) log-mel frames where the encoder is trained; input_ids, labels (batch, length) int64 and is_audio (batch, length) bool as the decoder sees them,
    labels already shifted; targets (batch, tokens) int64 without the end token, target_lengths (batch,);
    weights (batch,) 0 for a filler.
    """

    features: torch.Tensor
    frames: torch.Tensor
    valid: torch.Tensor
    input_ids: torch.Tensor
    is_audio: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> PassInputs:
        """A copy on `device`."""
        return PassInputs(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def pass_inputs(
    model: SpeechLLM,
    features: Sequence[torch.Tensor],
    tokens: Sequence[Sequence[int]],
    *,
    encoded: bool,
    weights: Sequence[float] | None = None,
) -> PassInputs:
    """Lay out clips for the learner: features [(time, width), ...] and tokens that end with the end token.

    `encoded`: features are encoder frames, not log-mel. `weights`: 0 for a clip that is not to count (default: all do).
    """
    pad = nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(rows) for rows in features])
    frames = lengths if encoded else model.config.encoder_frames(lengths)
    before, after = list(model.prompt.before_ids), list(model.prompt.after_ids)
    ids, audio, labels = [], [], []
    for count, row in zip(model.config.audio_tokens(frames).tolist(), tokens, strict=True):
        # The end token is predicted, never read.
        text = list(row)
        ids.append(torch.tensor(before + [_PLACEHOLDER] * count + after + text[:-1]))
        place = torch.zeros(len(ids[-1]), dtype=torch.bool)
        place[len(before) : len(before) + count] = True
        audio.append(place)
        label = torch.full((len(ids[-1]),), IGNORE)
        label[-len(text) :] = torch.tensor(text)
        labels.append(label)
    return PassInputs(
        features=pad([rows.float() for rows in features], batch_first=True),
        frames=frames,
        valid=lengths,
        input_ids=pad(ids, batch_first=True),
        is_audio=pad(audio, batch_first=True),
        labels=pad(labels, batch_first=True, padding_value=IGNORE),
        # One column at least: CTC takes no empty matrix.
        targets=pad([torch.tensor(list(row[:-1]) or [0]) for row in tokens], batch_first=True),
        target_lengths=torch.tensor([len(row) - 1 for row in tokens]),
        weights=torch.tensor(list(weights) if weights is not None else [1.0] * len(features)),
    )
