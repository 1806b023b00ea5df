"""Word errors of the model in training, on some dev clips, decoded in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from prunella.device_runtime.decoding.answer import AnswerReader, closing_of, opening_of
from prunella.device_runtime.decoding.repeat_stop import RepeatStop
from prunella.device_runtime.decoding.template_text import strip_template
from prunella.evaluation.word_errors import ErrorCounts, count_errors
from prunella.healing.features import CLEAN, FeatureStore
from prunella.healing.learner import Learner
from prunella.healing.order import pack
from prunella.healing.pass_inputs import PassInputs, pass_inputs
from prunella.speech_llm.batches import IGNORE
from prunella.speech_llm.model import SpeechLLM

_LONGEST_LOOP = 32  # tokens


@dataclass(frozen=True)
class DevScore:
    """Word errors, and the objective summed over `tokens`."""

    words: ErrorCounts = field(default_factory=ErrorCounts)
    loss: float = 0.0
    tokens: int = 0

    def __add__(self, other: DevScore) -> DevScore:
        return DevScore(self.words + other.words, self.loss + other.loss, self.tokens + other.tokens)


class DevSet:
    """Dev clips, decoded with the learner's current weights.

    Args:
        model: whose tokenizer, prompt and decode limits hold.
        store: the dev clips.
        positions: decoder positions of one batch, padding included.
    """

    def __init__(self, model: SpeechLLM, store: FeatureStore, positions: int) -> None:
        self._model, self._store = model, store
        self._reader = AnswerReader.of(model.prompt)
        lengths = store.positions(0)
        ordered = sorted(range(len(store)), key=lambda index: int(lengths[index]))
        self._groups = pack(ordered, lengths, positions)

    @torch.no_grad()
    def score(self, learner: Learner, process: int = 0, processes: int = 1) -> DevScore:
        """This process's share of the clips."""
        device = next(learner.projector.parameters()).device
        was_training = learner.training
        learner.eval()
        total = DevScore()
        for group in self._groups[process::processes]:
            store = self._store
            clips = [
                store.pass_clip(index, store.finish(store.load(index, CLEAN), index, CLEAN))
                for index in group
            ]
            inputs = pass_inputs(self._model, clips, encoded=store.encode).to(device)
            loss = float(learner(inputs)[0])
            texts = self.transcribe(learner, inputs, [store.clips[index].clip.seconds for index in group])
            for index, text in zip(group, texts, strict=True):
                words = count_errors(store.clips[index].clip.text, text).words
                total += DevScore(words, 0.0, len(store.tokens(index)))
            total += DevScore(loss=loss)
        learner.train(was_training)
        return total

    @torch.no_grad()
    def transcribe(
        self, learner: Learner, inputs: PassInputs, seconds: Sequence[float] | None = None
    ) -> list[str]:
        """Greedy transcripts under the model's own limits and guards.

        `seconds`: of each recording, which caps its tokens where not all that is heard is the recording.
        """
        if learner.spelling is not None:
            return learner.spelling.read(inputs)
        with torch.autocast(inputs.features.device.type, torch.bfloat16, enabled=learner.precision == "bf16"):
            audio = learner.audio_embeddings(inputs)
            steps = learner.audio_tokens(inputs)
            if learner.decoder is None:
                assert learner.alignment is not None
                ids = learner.alignment.read(learner.alignment(audio), steps.tolist())
            else:
                ids = self._generate(learner, audio, steps, inputs, seconds)
        return [self._text(row) for row in ids]

    def _generate(
        self,
        learner: Learner,
        audio: torch.Tensor,
        steps: torch.Tensor,
        inputs: PassInputs,
        seconds: Sequence[float] | None,
    ) -> list[list[int]]:
        model, decoder = self._model, learner.decoder
        eos = list(model.prompt.eos_ids)
        filled = learner.decoder_inputs(audio, steps, inputs)
        # The first token that is scored follows the prompt.
        prompts = (inputs.labels != IGNORE).int().argmax(dim=1) + 1
        rows = [row[:length] for row, length in zip(filled, prompts.tolist(), strict=True)]
        longest = max(map(len, rows))
        # Padding on the left, so that all rows go on at the same place.
        padded = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows], device=audio.device)
        mask = (torch.arange(longest, device=audio.device) >= longest - lengths[:, None]).long()
        caps = self._caps(steps.tolist(), seconds)
        output = decoder.generate(
            inputs_embeds=padded,
            attention_mask=mask,
            max_new_tokens=max(caps),
            stopping_criteria=StoppingCriteriaList([_RowStop(caps, self._looped)]),
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=eos,
            pad_token_id=eos[0],
        )
        return [_until(row.tolist(), eos, cap) for row, cap in zip(output, caps, strict=True)]

    def _caps(self, steps: list[int], seconds: Sequence[float] | None) -> list[int]:
        """Most tokens of each answer, as `Transcriber` has them."""
        spec, decode = self._model.config.audio, self._model.config.decode
        heard = [count * spec.samples_per_token / spec.sampling_rate for count in steps]
        if seconds is not None and (
            spec.features.valid != "all" or spec.features.multiple >= spec.sampling_rate
        ):
            heard = [spec.heard_seconds(round(one * spec.sampling_rate)) for one in seconds]
        kind = self._reader.answer
        frame = sum(
            len(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (opening_of(kind), closing_of(kind))
        )
        return [decode.token_cap(one) + max(self._model.prompt.opening_ids, frame) for one in heard]

    def _text(self, ids: list[int]) -> str:
        guard = self._guard(self._reader.whole(self._said(ids)))
        guard.finish()
        return strip_template(guard.text)

    def _looped(self, ids: list[int]) -> bool:
        said = self._said(ids)
        return self._guard(self._reader.shown(said)).looped or self._reader.is_stuck(said)

    def _said(self, ids: list[int]) -> str:
        return str(self._model.tokenizer.decode(ids, skip_special_tokens=True))

    def _guard(self, text: str) -> RepeatStop:
        guard = RepeatStop.of(self._model.config.decode)
        guard.feed(text)
        return guard


class _RowStop(StoppingCriteria):
    """Ends a row at its own cap, or where the guards see a loop: a broken model would run to the longest cap each time."""

    def __init__(self, caps: list[int], looped: Callable[[list[int]], bool]) -> None:
        self._caps, self._looped = torch.tensor(caps), looped
        self._done = torch.zeros(len(caps), dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        length = input_ids.shape[1]
        self._done = self._done.to(input_ids.device) | (self._caps.to(input_ids.device) <= length)
        for period in range(1, min(_LONGEST_LOOP, length // 4) + 1):
            tail = input_ids[:, -4 * period :]
            # Four copies of some tokens may still be inside one word, so the guard, which knows words, decides.
            for row in (
                ((tail[:, period:] == tail[:, :-period]).all(dim=1) & ~self._done).nonzero()[:, 0].tolist()
            ):
                self._done[row] = self._looped(input_ids[row].tolist())
        return self._done


def _until(ids: list[int], eos: list[int], cap: int) -> list[int]:
    for place, token in enumerate(ids):
        if token in eos:
            return ids[: min(place, cap)]
    return ids[:cap]
