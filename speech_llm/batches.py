"""Teacher-forced batches: prompt, audio and transcript as one padded sequence of embeddings for the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from transformers import PreTrainedModel

from prunella.evaluation.manifest import Utterance
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.streaming import in_groups, last_states, stream_of, streamed_logits
from prunella.speech_llm.torch_engine import model_features

IGNORE = -100  # label of a position that is not scored


class PositionClass(IntEnum):
    """What stands at a position of the decoder's input."""

    PROMPT = 0
    AUDIO = 1
    TEXT = 2
    SILENCE = 3  # audio tokens behind the recording's end, in a window that the family fills up to 30 s


@dataclass(frozen=True)
class SpeechExample:
    """One utterance: log-mel (num_mel_bins, frames) float32, and transcript token ids that end with the end token.

    Attributes:
        valid: frames of audio; 0: all.
        language: that is spoken, see `SpeechLLM.prompt_for`.
        recorded: audio tokens of the recording itself, the rest being the silence of a whole window; 0: all are.
    """

    log_mel: torch.Tensor
    tokens: tuple[int, ...]
    valid: int = 0
    language: str = ""
    recorded: int = 0

    @property
    def valid_frames(self) -> int:
        """Frames of audio."""
        return self.valid or self.log_mel.shape[1]

    def length(self, model: SpeechLLM) -> int:
        """Positions that the example takes in the decoder."""
        audio = model.config.audio_tokens(model.config.encoder_frames(self.valid_frames))
        return model.prompt_for(self.language).positions(audio) + len(self.tokens)


@dataclass(frozen=True)
class DecoderBatch:
    """Right-padded decoder inputs.

    inputs_embeds (batch, length, hidden); attention_mask (batch, length) int64; labels (batch, length) int64, already
    shifted: labels[t] is the token that position t predicts, `IGNORE` where nothing is scored; position_class
    (batch, length) int64, -1 at padding.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    position_class: torch.Tensor

    @property
    def is_token(self) -> torch.Tensor:
        """(batch, length) bool, False at padding."""
        return self.position_class >= 0


def speech_example(model: SpeechLLM, utterance: Utterance) -> SpeechExample:
    """Read one utterance's audio and tokenize its transcript as the model writes.

    Raises:
        AudioError: the file cannot be read.
        UsageError: it is in a language that the model's prompt does not have.
    """
    samples, language, spec = utterance.load(), utterance.language, model.config.audio
    features, valid = model_features(model, samples)
    answer = model.answer(utterance.text, language, seconds=len(samples) / spec.sampling_rate)
    ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    windows = spec.features.multiple >= spec.sampling_rate
    recorded = -(-len(samples) // spec.samples_per_token) if windows else 0
    return SpeechExample(features, (*ids, model.prompt.eos_ids[0]), valid, language, recorded)


def batches_by_length(
    model: SpeechLLM, examples: Iterable[SpeechExample], max_positions: int = 2_048
) -> Iterator[DecoderBatch]:
    """Batches of similar lengths with at most `max_positions` positions, padding included."""
    ordered = sorted(examples, key=lambda example: example.length(model))
    group: list[SpeechExample] = []
    for example in ordered:
        if group and (len(group) + 1) * example.length(model) > max_positions:
            yield speech_batch(model, group)
            group = []
        group.append(example)
    if group:
        yield speech_batch(model, group)


def speech_batch(model: SpeechLLM, examples: Sequence[SpeechExample]) -> DecoderBatch:
    """Encode the audio of `examples` together and lay the decoder's inputs out."""
    lengths = torch.tensor([example.log_mel.shape[1] for example in examples])
    log_mel = torch.zeros(len(examples), examples[0].log_mel.shape[0], int(lengths.max()))
    for row, example in zip(log_mel, examples, strict=True):
        row[:, : example.log_mel.shape[1]] = example.log_mel
    valid = torch.tensor([example.valid_frames for example in examples])
    padded = len(examples) > 1 or int(valid[0]) < log_mel.shape[2]
    audio = model.embed_audio(log_mel, valid if padded else None)
    audio_tokens = model.config.audio_tokens(model.config.encoder_frames(valid))
    rows = [row[:count] for row, count in zip(audio, audio_tokens.tolist(), strict=True)]
    return layout_batch(model, rows, examples)


def layout_batch(
    model: SpeechLLM, audio: Sequence[torch.Tensor], examples: Sequence[SpeechExample]
) -> DecoderBatch:
    """Lay out audio embeddings [(audio_tokens, hidden), ...] with the prompt around and the transcripts behind them."""
    rows, labels, classes = [], [], []
    for embeddings, example in zip(audio, examples, strict=True):
        ids, prompt = example.tokens, model.prompt_for(example.language)
        before, after = (
            model.embed_tokens(torch.tensor(side, dtype=torch.long))
            for side in (prompt.before_ids, prompt.after_ids)
        )
        recorded = min(example.recorded or len(embeddings), len(embeddings))
        target = torch.tensor(ids, dtype=torch.long)
        heard, kinds = _among_marks(model, embeddings, recorded)
        # The end token is predicted, never read.
        rows.append(torch.cat([before, heard, after, model.embed_tokens(target[:-1])]))
        around = [
            torch.full((count,), int(kind))
            for count, kind in (
                (len(before), PositionClass.PROMPT),
                (len(after), PositionClass.PROMPT),
                (len(ids) - 1, PositionClass.TEXT),
            )
        ]
        classes.append(torch.cat([around[0], kinds, *around[1:]]))
        label = torch.full((len(rows[-1]),), IGNORE)
        label[len(label) - len(ids) :] = target
        labels.append(label)
    pad = torch.nn.utils.rnn.pad_sequence
    position_class = pad(classes, batch_first=True, padding_value=-1)
    return DecoderBatch(
        inputs_embeds=pad(rows, batch_first=True),
        attention_mask=(position_class >= 0).long(),
        labels=pad(labels, batch_first=True, padding_value=IGNORE),
        position_class=position_class,
    )


def _among_marks(
    model: SpeechLLM, embeddings: torch.Tensor, recorded: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio tokens (n, hidden) and the prompt's time marks among them, and their position classes (n + marks,)."""
    span = torch.tensor(model.prompt.audio_span(len(embeddings), IGNORE), dtype=torch.long)
    kinds = torch.full((len(embeddings),), int(PositionClass.AUDIO))
    kinds[recorded:] = int(PositionClass.SILENCE)
    inside = span == IGNORE
    if bool(inside.all()):
        return embeddings, kinds
    found = torch.full((len(span),), int(PositionClass.PROMPT))
    found[inside] = kinds
    rows = model.embed_tokens(span.clamp(min=0))
    return rows.masked_scatter(inside[:, None], embeddings.to(rows.dtype)), found


def text_batch(decoder: PreTrainedModel, tokens: Sequence[Sequence[int]]) -> DecoderBatch:
    """A batch of plain text for a decoder: every position is TEXT and predicts the next token."""
    rows = [torch.tensor(ids, dtype=torch.long) for ids in tokens]
    pad = torch.nn.utils.rnn.pad_sequence
    labels = pad([torch.cat([row[1:], torch.tensor([IGNORE])]) for row in rows], True, IGNORE)
    classes = pad([torch.full_like(row, PositionClass.TEXT) for row in rows], True, -1)
    ids = pad(rows, True, 0)
    return DecoderBatch(decoder_view(decoder).embeddings(ids), (classes >= 0).long(), labels, classes)


def scored_logits(
    decoder: PreTrainedModel,
    inputs_embeds: torch.Tensor,
    scored: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """(scored positions, vocabulary) float32 logits of the model's own head, which runs on those positions alone.

    Args:
        decoder: any causal LM whose head looks at one position at a time.
        inputs_embeds: (batch, length, hidden).
        scored: (batch, length) bool.
        attention_mask: (batch, length) int64; none needed where padding is on the right, which causal positions never see.
    """
    view = decoder_view(decoder)
    return view.logits(view.run(inputs_embeds, attention_mask)[scored]).float()


def batch_loss(decoder: PreTrainedModel, batch: DecoderBatch) -> tuple[float, int]:
    """Summed cross-entropy (nats) over the scored positions, and their number. The head runs on those alone."""
    scored = batch.labels != IGNORE
    logits = scored_logits(decoder, batch.inputs_embeds, scored, batch.attention_mask)
    loss = torch.nn.functional.cross_entropy(logits, batch.labels[scored], reduction="sum")
    return float(loss), int(scored.sum())


@torch.inference_mode()
def cross_entropy(decoder: PreTrainedModel, batches: Iterable[DecoderBatch]) -> float:
    """Mean negative log-likelihood (nats a token) of the transcripts, end token included."""
    if stream_of(decoder) is not None:
        return cross_entropies([decoder], batches)[0]
    total, count = 0.0, 0
    for batch in batches:
        loss, tokens = batch_loss(decoder, batch)
        total, count = total + loss, count + tokens
    return total / max(count, 1)


@torch.inference_mode()
def cross_entropies(
    decoders: Sequence[PreTrainedModel],
    batches: Iterable[DecoderBatch],
    tick: Callable[[], object] | None = None,
) -> list[float]:
    """`cross_entropy` of several cuts of one decoder; where that stays on disk its layers are read once for all of them.

    `tick`: called for each of them as it is known.
    """
    tick = tick or (lambda: None)
    if not decoders or stream_of(decoders[0]) is None:
        kept, losses = list(batches), []
        for decoder in decoders:
            losses.append(cross_entropy(decoder, kept))
            tick()
        return losses
    totals, count = [0.0] * len(decoders), 0
    for group in in_groups(batches, states=len(decoders)):
        scored = [batch.labels != IGNORE for batch in group]
        labels = torch.cat([batch.labels[where] for batch, where in zip(group, scored, strict=True)])
        count += len(labels)
        for one, states in enumerate(last_states(decoders, group)):
            rows = torch.cat([state[where] for state, where in zip(states, scored, strict=True)])
            place = 0
            for logits in streamed_logits(decoders[one], rows):
                wanted = labels[place : place + len(logits)]
                totals[one] += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
                place += len(logits)
    for _ in decoders:
        tick()
    return [total / max(count, 1) for total in totals]


@torch.inference_mode()
def all_logits(decoder: PreTrainedModel, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """(batch, length, hidden) → (batch, length, vocabulary) float32, of a decoder in memory or on disk."""
    view = decoder_view(decoder)
    if stream_of(decoder) is None:
        return view.logits(view.run(inputs_embeds)).float()
    shape = inputs_embeds.shape[:2]
    batch = DecoderBatch(
        inputs_embeds, torch.ones(shape, dtype=torch.long), torch.zeros(shape), torch.zeros(shape)
    )
    rows = last_states([decoder], [batch])[0][0]
    logits = torch.cat(list(streamed_logits(decoder, rows.reshape(-1, rows.shape[-1]))))
    return logits.reshape(*shape, -1)
