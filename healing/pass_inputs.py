"""What one pass of training takes, padded to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn

from prunella.speech_llm.batches import IGNORE
from prunella.speech_llm.model import SpeechLLM

_PLACEHOLDER = -1  # where audio goes


@dataclass(frozen=True)
class PassInputs:
    """Padded inputs of one forward pass over `batch` clips.

    features (batch, time, width): encoder frames, or log-mel where the encoder is trained; frames (batch,) encoder frames of
    audio; valid (batch,) rows of audio in `features`; input_ids, labels (batch, length) int64 and is_audio (batch, length)
    bool as the decoder sees them, labels already shifted; targets (batch, tokens) int64 of what is said,
    target_lengths (batch,); weights (batch,) 0 for a filler.
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


@dataclass(frozen=True)
class PassClip:
    """A clip as `pass_inputs` takes it.

    Attributes:
        rows: (time, width) encoder frames, or (frames, num_mel_bins) features.
        valid: of them audio's, the first ones.
        tokens: of the answer; ends with the end token.
        said: tokens of what is said in it, or letters: what CTC losses align.
        language: that is spoken, see `SpeechLLM.prompt_for`.
        weight: 0 where it is not to count.
    """

    rows: torch.Tensor
    valid: int
    tokens: Sequence[int]
    said: Sequence[int]
    language: str = ""
    weight: float = 1.0


def pass_inputs(model: SpeechLLM, clips: Sequence[PassClip], *, encoded: bool) -> PassInputs:
    """Lay out clips for the learner. `encoded`: their rows are encoder frames, not features."""
    pad = nn.utils.rnn.pad_sequence
    valid = torch.tensor([clip.valid for clip in clips])
    frames = valid if encoded else model.config.encoder_frames(valid)
    ids, audio, labels = [], [], []
    for count, clip in zip(model.config.audio_tokens(frames).tolist(), clips, strict=True):
        prompt = model.prompt_for(clip.language)
        before, after = list(prompt.before_ids), list(prompt.after_ids)
        # The end token is predicted, never read.
        text = list(clip.tokens)
        row = torch.tensor(before + prompt.audio_span(count, _PLACEHOLDER) + after + text[:-1])
        audio.append(row == _PLACEHOLDER)
        ids.append(row.clamp(min=0))  # any token: its embedding is overwritten
        label = torch.full((len(ids[-1]),), IGNORE)
        label[-len(text) :] = torch.tensor(text)
        labels.append(label)
    return PassInputs(
        features=pad([clip.rows.float() for clip in clips], batch_first=True),
        frames=frames,
        valid=valid,
        input_ids=pad(ids, batch_first=True),
        is_audio=pad(audio, batch_first=True),
        labels=pad(labels, batch_first=True, padding_value=IGNORE),
        # One column at least: CTC takes no empty matrix.
        targets=pad([torch.tensor(list(clip.said) or [0]) for clip in clips], batch_first=True),
        target_lengths=torch.tensor([len(clip.said) for clip in clips]),
        weights=torch.tensor([clip.weight for clip in clips]),
    )
