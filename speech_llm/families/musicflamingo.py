"""Music Flamingo: Audio Flamingo 3 whose encoder frames are turned by the time at which they are heard."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.speech_llm.families.chat_prompt import AUDIO, PLACEHOLDER, chat_prompt, says
from prunella.speech_llm.families.family import Family, language_model
from prunella.speech_llm.families.qwen2_audio import PooledWhisperEncoder, pooled_geometry

_INSTRUCTION = "Transcribe the input speech."
_USUAL_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"{PLACEHOLDER}{_INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
)
_ROWS = 750  # of a window of 30 s, in which every utterance is


class TimedWhisperEncoder(PooledWhisperEncoder):
    """`PooledWhisperEncoder`, and the rotary time embedding of the first window of 30 s."""

    def __init__(self, tower: PreTrainedModel, rotary: Any, frame_step: float) -> None:
        super().__init__(tower)
        seconds = torch.arange(_ROWS, dtype=torch.float32)[None] * (4 * frame_step)
        cosines, sines = rotary(seconds, seq_len=_ROWS)
        self.register_buffer("cosines", cosines[0].float(), persistent=False)
        self.register_buffer("sines", sines[0].float(), persistent=False)

    def forward(self, log_mel: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """See `PooledWhisperEncoder.forward`."""
        hidden = super().forward(log_mel, valid)
        cosines, sines = (table[: hidden.shape[1]] for table in (self.cosines, self.sines))  # type: ignore[index]
        turned, rest = hidden.tensor_split([cosines.shape[-1]], dim=-1)
        even, odd = turned[..., 0::2], turned[..., 1::2]
        across = torch.stack((-odd, even), dim=-1).flatten(-2)
        return torch.cat((turned * cosines + across * sines, rest), dim=-1)


def _audio_half(stock: PreTrainedModel, trimmed: bool) -> tuple[nn.Module, nn.Module]:
    model: Any = stock.model
    encoder = TimedWhisperEncoder(model.audio_tower, model.pos_emb, stock.config.audio_frame_step)
    return encoder, model.multi_modal_projector


def _marks(config: Any) -> tuple[int, int]:
    return config.audio_bos_token_id, config.audio_eos_token_id


FAMILY = Family(
    model_type="musicflamingo",
    architecture="MusicFlamingoForConditionalGeneration",
    since="5.5",
    geometry=pooled_geometry,
    audio_half=_audio_half,
    prompt=chat_prompt([says(_INSTRUCTION), AUDIO], _USUAL_PROMPT, marks=_marks, answer="quoted"),
    as_causal_lm=language_model,
    true_length=True,
    mmproj="musicflamingo with times",
)
