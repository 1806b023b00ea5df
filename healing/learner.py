"""What one forward pass of training computes: the loss of some clips, as sums that add up over processes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunella.device_runtime.base.errors import UsageError
from prunella.healing.hidden_matching import HiddenMatching
from prunella.healing.pass_inputs import PassInputs
from prunella.healing.plan import HealingPlan
from prunella.healing.training_speed import CompiledLayers
from prunella.speech_llm.batches import IGNORE, scored_logits
from prunella.speech_llm.ctc_head import read_letters
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.families.family import projected
from prunella.speech_llm.model import SpeechLLM

_PLACEHOLDER = 0  # token id where audio goes; its embedding is overwritten


@dataclass(frozen=True)
class Unregistered:
    """A module that another one uses and that is no part of it: nn.Module registers every module that it is given."""

    module: SpeechLLM | None


class Learner(nn.Module):
    """The trained parts of a `SpeechLLM` behind one forward, which is what accelerate wraps.

    Args:
        model: trained in place.
        plan: what is trained and how.
        vocabulary: token ids that the CTC stage tells apart: those of the training text.
        teacher: a larger model whose distribution over the transcript is learned too.
        precision: "fp32" or "bf16" (autocast).
        compiled: the decoder's layers, compiled; none: they run as they are.
    """

    def __init__(
        self,
        model: SpeechLLM,
        plan: HealingPlan,
        *,
        vocabulary: Sequence[int] = (),
        teacher: SpeechLLM | None = None,
        precision: str = "fp32",
        compiled: CompiledLayers | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.precision = plan, precision
        self._layers_compiled = compiled.active if compiled is not None else contextlib.nullcontext
        self._config = model.config
        self.projector = model.projector
        self.encoder = model.audio_encoder if "encoder" in plan.parts else None
        embeddings = model.view.token_table()
        self.embedding_rms = float(embeddings.square().mean().sqrt())
        self._teacher = Unregistered(teacher)
        self.decoder: Any = model.decoder if plan.with_decoder else None
        self.spelling = LetterHead(model) if plan.stage == "ctc-head" else None
        self.alignment = TokenAlignment(embeddings, vocabulary) if plan.needs_alignment else None
        self._matching: HiddenMatching | None = None
        if teacher is not None:
            _check_teacher(teacher, model, frozen_encoder=self.encoder is None)
            if plan.hidden_weight > 0:
                self._matching = HiddenMatching(model, teacher)
        self._recording = self._matching.recording if self._matching is not None else contextlib.nullcontext

    def forward(self, inputs: PassInputs) -> torch.Tensor:
        """(2,) float32: the objective summed over tokens (or letters), and the scale penalty summed over clips."""
        with torch.autocast(inputs.features.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.spelling is not None:
                loss = self.spelling.loss(inputs)
                return torch.stack([loss, torch.zeros_like(loss)])
            audio = self.audio_embeddings(inputs)
            steps = self.audio_tokens(inputs)
            objective = audio.new_zeros((), dtype=torch.float32)
            if self.decoder is not None:
                with self._recording():
                    objective = objective + self._transcript_loss(audio, steps, inputs)
            if self.alignment is not None:
                weight = 1.0 if self.decoder is None else self.plan.ctc_weight
                objective = objective + weight * self.alignment.loss(self.alignment(audio), steps, inputs)
            return torch.stack([objective, self._scale_penalty(audio, steps, inputs.weights)])

    def audio_tokens(self, inputs: PassInputs) -> torch.Tensor:
        """(batch,) audio tokens of each clip, padding left out."""
        return self._config.audio_tokens(inputs.frames)

    def audio_embeddings(self, inputs: PassInputs) -> torch.Tensor:
        """(batch, audio_tokens, hidden)"""
        if self.encoder is None:
            return projected(self.projector, inputs.features, inputs.frames)
        encoded = self.encoder(inputs.features.transpose(1, 2), inputs.valid)
        return projected(self.projector, encoded, inputs.frames)

    def decoder_inputs(self, audio: torch.Tensor, steps: torch.Tensor, inputs: PassInputs) -> torch.Tensor:
        """(batch, length, hidden): token embeddings with the audio in its place."""
        return _fill(self.decoder, audio, steps, inputs)

    def _transcript_loss(self, audio: torch.Tensor, steps: torch.Tensor, inputs: PassInputs) -> torch.Tensor:
        scored = inputs.labels != IGNORE
        labels = inputs.labels[scored]
        weights = inputs.weights[:, None].expand_as(inputs.labels)[scored]
        with self._layers_compiled():
            logits = scored_logits(self.decoder, self.decoder_inputs(audio, steps, inputs), scored)
        losses = nn.functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.plan.label_smoothing
        )
        teacher = self._teacher.module
        if teacher is not None:
            with torch.no_grad():
                heard = inputs.features if self.encoder is None else None
                if heard is None:
                    heard = teacher.audio_encoder(inputs.features.transpose(1, 2), inputs.valid)
                taught = _fill(
                    teacher.decoder, projected(teacher.projector, heard, inputs.frames), steps, inputs
                )
                wanted = scored_logits(teacher.decoder, taught, scored).log_softmax(-1)
            known = nn.functional.kl_div(
                logits.log_softmax(-1), wanted, reduction="none", log_target=True
            ).sum(-1)
            losses = torch.lerp(losses, known, self.plan.kl_weight)
        total = (losses * weights).sum()
        if self._matching is not None:
            total = total + self.plan.hidden_weight * self._matching.distance(inputs)
        return total

    def _scale_penalty(self, audio: torch.Tensor, steps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        inside = torch.arange(audio.shape[1], device=audio.device) < steps[:, None]
        # eps: a silent clip's embeddings may be tiny, whose logarithm has a huge gradient.
        rms = (audio.float().square().mean(-1) + 1e-6).sqrt()
        penalty = (rms / self.embedding_rms).log().square() * inside
        return (penalty.sum(1) / steps.clamp(min=1) * weights).sum()


class TokenAlignment(nn.Module):
    """CTC between audio embeddings and the decoder's own token embeddings: cosine logits, and a learned blank.

    Only tokens of the training text are told apart: the others could never be the answer, and the 49,000 of a full
    vocabulary would cost more than the projector.
    """

    rows: torch.Tensor
    place: torch.Tensor
    token_ids: torch.Tensor

    def __init__(self, embeddings: torch.Tensor, vocabulary: Sequence[int]) -> None:
        super().__init__()
        if not vocabulary:
            raise UsageError("the CTC stage needs the tokens of the training text: give speech with a text")
        ids = torch.tensor(sorted(set(vocabulary)))
        place = torch.zeros(len(embeddings), dtype=torch.long)
        place[ids] = torch.arange(1, len(ids) + 1)
        self.register_buffer("token_ids", ids, persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("rows", nn.functional.normalize(embeddings[ids], dim=-1), persistent=False)
        self.blank = nn.Parameter(embeddings.mean(0))
        # Large enough that a token at a cosine of 0.7 stands out among 20,000 others at 0.3.
        self.log_scale = nn.Parameter(torch.tensor(40.0).log())

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """(batch, steps, hidden) → (batch, steps, 1 + tokens) logits; class 0 is the blank."""
        rows = torch.cat([nn.functional.normalize(self.blank, dim=-1)[None], self.rows])
        heard = nn.functional.normalize(audio.float(), dim=-1)
        return (self.log_scale.exp() * nn.functional.linear(heard, rows)).float()

    def loss(self, logits: torch.Tensor, steps: torch.Tensor, inputs: PassInputs) -> torch.Tensor:
        """Summed negative log-likelihood of the targets. A token that never occurred in the text counts as blank's."""
        losses = nn.functional.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            self.place[inputs.targets],
            steps,
            inputs.target_lengths,
            reduction="none",
            zero_infinity=True,
        )
        return (losses * inputs.weights).sum()

    def read(self, logits: torch.Tensor, steps: Sequence[int]) -> list[list[int]]:
        """Greedy token ids of each row: repeats joined, blanks dropped."""
        texts = []
        for row, count in zip(logits.argmax(-1), steps, strict=True):
            places = torch.unique_consecutive(row[:count])
            texts.append(self.token_ids[places[places > 0] - 1].tolist())
        return texts


class LetterHead(nn.Module):
    """The model's CTC head over encoder frames, for the stage that trains it; targets are classes of letters."""

    def __init__(self, model: SpeechLLM) -> None:
        super().__init__()
        assert model.ctc_head is not None
        self.head = model.ctc_head
        self._alphabet = model.config.ctc_alphabet

    def loss(self, inputs: PassInputs) -> torch.Tensor:
        """Summed negative log-likelihood of the letters."""
        losses = nn.functional.ctc_loss(
            self.head(inputs.features, inputs.frames).transpose(0, 1),
            inputs.targets,
            self.head.frames.count(inputs.frames),
            inputs.target_lengths,
            reduction="none",
            zero_infinity=True,
        )
        return (losses * inputs.weights).sum()

    def read(self, inputs: PassInputs) -> list[str]:
        """What is heard in each row, spelled without any language model."""
        heard = self.head(inputs.features, inputs.frames)
        counts = self.head.frames.count(inputs.frames).tolist()
        return [read_letters(row[:count], self._alphabet) for row, count in zip(heard, counts, strict=True)]


def _fill(decoder: Any, audio: torch.Tensor, steps: torch.Tensor, inputs: PassInputs) -> torch.Tensor:
    embedded = decoder_view(decoder).embeddings(inputs.input_ids)
    inside = torch.arange(audio.shape[1], device=audio.device) < steps[:, None]
    return embedded.masked_scatter(inputs.is_audio[..., None], audio[inside].to(embedded.dtype))


def _check_teacher(teacher: SpeechLLM, model: SpeechLLM, *, frozen_encoder: bool) -> None:
    sizes = [one.view.vocab_size for one in (teacher, model)]
    vocabularies = [one.tokenizer.get_vocab() for one in (teacher, model)]
    if sizes[0] != sizes[1] or vocabularies[0] != vocabularies[1] or teacher.prompt != model.prompt:
        raise UsageError(
            "the teacher has another vocabulary or prompt: use the model that this one was pruned from, and where tokens were "
            "cut, cut its own by the same texts (`prunella prune TEACHER --keep-vocabulary`)"
        )
    if teacher.config.audio.features != model.config.audio.features:
        raise UsageError(
            "the teacher hears whole windows of silence and the student does not: leave --teacher out, or take one that was "
            "healed with --trim-audio too"
        )
    if frozen_encoder:
        mine, its = model.audio_encoder.state_dict(), teacher.audio_encoder.state_dict()
        if mine.keys() != its.keys() or not all(
            torch.equal(mine[key], its[key].to(mine[key])) for key in mine
        ):
            raise UsageError(
                "the teacher has another audio encoder, but encoder features are shared: train the encoder too "
                "(--train projector,decoder,encoder), or use the model that this one was pruned from"
            )
