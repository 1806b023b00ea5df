"""From samples to a `Transcript`, over any engine: split, gate, encode, prefill, decode under the guards."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import AudioError
from prunella.device_runtime.bundle import AudioSpec, PromptSpec
from prunella.device_runtime.decoding.answer import (
    ENGLISH,
    AnswerReader,
    closing_of,
    frames_in,
    opening_of,
    write_answer,
)
from prunella.device_runtime.decoding.beam_search import Beams, beams_to_follow
from prunella.device_runtime.decoding.draft import LONGEST_BELIEVED, AudioDrafter, open_drafter
from prunella.device_runtime.decoding.effort import Letters, Shortcut, check_shortcut
from prunella.device_runtime.decoding.engine import BeamEngine, Engine
from prunella.device_runtime.decoding.greedy import Greedy
from prunella.device_runtime.decoding.limits import MIN_SCORE, check_effort
from prunella.device_runtime.decoding.phrases import Phrases, PhraseTrie
from prunella.device_runtime.decoding.strategy import Decoded, Decoding, Prefilled
from prunella.device_runtime.decoding.text_style import style_text
from prunella.device_runtime.sound.audio import Audio, check_samples, split_at_quiet_points
from prunella.device_runtime.sound.speech_gate import (
    LevelMeter,
    SpeechGate,
    doubts,
    speech_listener,
    worth_decoding,
)
from prunella.device_runtime.sound.utterances import cut_in_pauses
from prunella.device_runtime.transcript import (
    DecodeOptions,
    Effort,
    Phrase,
    Segment,
    Timings,
    Transcript,
    Turn,
    silent_segment,
)


@dataclass(frozen=True, eq=False)
class Transcriber:
    """Transcribes recordings of any length with one engine. Never changed: `with_options` and `with_phrases` give others
    that share the engine, and one of them at a time may use it.

    Attributes:
        engine: any `Engine`: ONNX Runtime on the device, PyTorch on the build machine.
        tokenizer: the decoder's.
        audio: how samples become audio tokens.
        prompt: whose end-of-sequence tokens end a transcript.
        options: limits and guards.
        speech_gate: what tells speech from noise before anything is encoded; none: only silence is told.
        phrases: all that can be said; none: anything.
        drafter: what guesses are read off the audio with; opened where `options` want one and it is not given.
    """

    engine: Engine
    tokenizer: Tokenizer
    audio: AudioSpec
    prompt: PromptSpec
    options: DecodeOptions = field(default_factory=DecodeOptions)
    speech_gate: SpeechGate | None = None
    phrases: PhraseTrie | None = None
    drafter: AudioDrafter | None = field(default=None, repr=False)
    _decoding: Decoding = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.drafter is None:
            drafter = open_drafter(self.engine, self.tokenizer, self.prompt.text_style, self.options)
            object.__setattr__(self, "drafter", drafter)
        object.__setattr__(self, "_decoding", self._choose_decoding())

    def with_options(
        self,
        options: DecodeOptions | None = None,
        *,
        beams: int | None = None,
        guards: bool | None = None,
        effort: Effort | None = None,
    ) -> Transcriber:
        """A transcriber over the same engine with other options; itself, where they are the same.

        Args:
            options: in place of all of its own.
            beams: transcripts that are followed at once: 1 is greedy; 0 as many as pay, where the model has a CTC head and
                the engine can, or as the bundle says.
            guards: the repeat stop, and the gate for silence and noise.
            effort: how much of the decoder runs where a CTC head is sure, see `decoding/effort.py`; phrases are always
                searched as "exact".

        Raises:
            UsageError: fewer beams than 0, or more than any engine follows; no such effort, or the model writes what letters
                do not say.
            EngineError: the engine cannot follow so many, or hears no letters.
        """
        chosen = options or self.options
        if guards is not None:
            chosen = replace(chosen, guards=guards)
        if beams is not None:
            chosen = replace(chosen, beams=beams_to_follow(self.engine, beams, chosen.beams))
        if effort is not None:
            check_effort(effort)
            check_shortcut(self.engine, self.prompt, effort)
            chosen = replace(chosen, effort=effort)
        if chosen == self.options:
            return self
        return replace(self, options=chosen, drafter=self.drafter if options is None else None)

    def with_phrases(self, phrases: Iterable[Phrase], *, min_score: float = MIN_SCORE) -> Transcriber:
        """A transcriber over the same engine that can say nothing but these phrases, or nothing at all.

        A segment then carries its `phrase`; its text is the phrase as the list writes it. A model that names the
        language before a transcript is told it, English where none was chosen: phrases are what is said behind that.

        Raises:
            UsageError: as `PhraseTrie`.
        """
        prompt = self.prompt
        closing = closing_of(prompt.answer)
        # What closes a quotation may be a token, or several.
        closings = {self._ids(closing[:length])[0] for length in range(1, len(closing) + 1)}
        ends = (*prompt.eos_ids, *sorted(closings))
        trie = PhraseTrie(phrases, self.tokenizer, ends, prompt.text_style, min_score=min_score)
        return replace(self, phrases=trie)

    def with_language(self, language: str) -> Transcriber:
        """A transcriber over the same engine that is told the language, by its code or English name; "": it finds out.

        Raises:
            UsageError: the model's prompt takes no language, or not this one.
        """
        prompt = self.prompt.with_language(language)
        return self if prompt == self.prompt else replace(self, prompt=prompt)

    def transcribe(self, samples: npt.ArrayLike | Audio, *, draft: Sequence[int] = ()) -> Transcript:
        """Transcribe a recording of any length: cut in its pauses (`cut_in_pauses`), the texts joined with a space.

        Args:
            samples: (n,) mono samples at the bundle's rate (16 kHz), or a recording that is read block by block.
            draft: tokens believed to be said, such as an earlier transcript of the beginning: verified in one pass
                instead of decoded one by one; see `greedy.py` for when the text stays the same.

        Raises:
            AudioError: empty, NaN or infinite samples, or another shape.
        """
        notes: tuple[str, ...] = ()
        if isinstance(samples, Audio):
            blocks, notes = samples.blocks(), samples.notes
        else:
            blocks = iter([check_samples(samples, self.audio.sampling_rate)])
        level = LevelMeter()
        listener = speech_listener(self.speech_gate, self.options)
        segments: list[Segment] = []
        began = time.perf_counter()
        for piece in cut_in_pauses(level.measured(blocks), listener, self.audio.max_seconds):
            if piece.samples is None:
                t0, t1 = (place / self.audio.sampling_rate for place in (piece.start, piece.stop))
                segments.append(silent_segment(t0, t1, time.perf_counter() - began))
            else:
                steps = self._segment(piece.samples, piece.start, draft, heard=True, began=began)
                segments.append(_finished(steps))
                draft = ()
            began = time.perf_counter()
        transcript = self._transcript(segments)
        if self.options.guards:
            heard = transcript.finish_reason != "silence" and self.phrases is None
            seconds = level.count / self.audio.sampling_rate
            notes += doubts(seconds, level.peak, heard=heard, words=bool(transcript.text))
        return replace(transcript, warnings=notes)

    def stream(
        self, samples: npt.ArrayLike, *, draft: Sequence[int] = ()
    ) -> Generator[str, None, Transcript]:
        """Transcribe one utterance and yield the text so far after each token; the generator's value is the `Transcript`.

        What is longer than `audio.max_seconds` is cut at quiet points, but not in pauses: that has been done.

        A text that was yielded can still lose its end: to a loop that was cut, or to template text. While several
        transcripts are followed it is what all of them agree in. The timings include what the consumer does between
        two texts.

        Args:
            samples: as `transcribe`, in memory.
            draft: as `transcribe`.

        Raises:
            AudioError: as `transcribe`.
        """
        checked = check_samples(samples, self.audio.sampling_rate)
        segments: list[Segment] = []
        shown = ""
        for start, stop in split_at_quiet_points(checked, self.audio.max_seconds):
            steps = self._segment(checked[start:stop], start, () if segments else draft)
            while True:
                try:
                    shown = _join([*(segment.text for segment in segments), next(steps)])
                except StopIteration as done:
                    segments.append(done.value)
                    break
                yield shown
        transcript = self._transcript(segments)
        if transcript.text != shown:
            yield transcript.text
        return transcript

    def warm_up(self, seconds: float = 1.0) -> None:
        """Do once what an utterance of so many seconds needs, whatever the gates would say of it.

        No first word then pays for cold caches, and the engine holds the memory that such an utterance takes.
        """
        noise = np.random.default_rng(0).standard_normal(int(seconds * self.audio.sampling_rate))
        samples = (0.01 * noise).astype(np.float32)
        if self.speech_gate is not None:
            self.speech_gate.hears_speech(samples, 1.0)
        embeddings = self.engine.encode(samples)
        token = int(np.argmax(self.engine.start(embeddings)))
        count = min(LONGEST_BELIEVED, self.options.token_cap(seconds))
        self.engine.extend([token] * count)
        self.engine.rewind(count)
        self.engine.step(token)
        if (beams := self.options.beams) > 1 and isinstance(self.engine, BeamEngine):
            self.engine.step_beams([token] * beams, [0] * beams)

    def score(self, samples: npt.ArrayLike, text: str) -> tuple[float, int]:
        """Cross-entropy of a given transcript.

        Args:
            samples: (n,) mono samples at 16 kHz, at most `audio.max_seconds`.
            text: what was said; brought into the form that the model writes (`prompt.text_style`), with what it puts
                around a transcript (`write_answer`; where the prompt names no language, that the text is English).

        Returns:
            Sum of the negative log-likelihoods (nats) of the text's tokens and the end token, and their number.

        Raises:
            AudioError: not usable, or longer than the model takes in one piece.
        """
        checked = check_samples(samples, self.audio.sampling_rate)
        seconds = len(checked) / self.audio.sampling_rate
        if seconds > self.audio.max_seconds:
            raise AudioError(
                f"{seconds:.1f} s of audio cannot be scored in one piece: cut it to {self.audio.max_seconds} s"
            )
        kind = AnswerReader.of(self.prompt).answer
        answer = write_answer(style_text(text, self.prompt.text_style), kind, seconds=seconds)
        tokens = [*self._ids(answer), self.prompt.eos_ids[0]]
        losses = self.engine.score(self.engine.encode(checked), tokens, *self._behind(self.prompt))
        return float(np.sum(losses, dtype=np.float64)), len(tokens)

    def _transcript(self, segments: Sequence[Segment]) -> Transcript:
        return Transcript(
            text=_join([segment.text for segment in segments]),
            segments=tuple(segments),
            timings=sum((segment.timings for segment in segments), Timings()),
            engine=self.engine.name,
            options=self.options,
        )

    def _choose_decoding(self) -> Decoding:
        engine, tokenizer, end, options = self.engine, self.tokenizer, self.prompt.eos_ids, self.options
        reader = AnswerReader.of(self.prompt)
        if self.phrases is not None:
            return Phrases(engine, self.phrases)
        decoding: Decoding = Greedy(engine, tokenizer, end, options, self.drafter, reader)
        if options.beams > 1 and isinstance(engine, BeamEngine):
            decoding = Beams(engine, tokenizer, end, self.audio.ctc_alphabet, options, reader)
        if options.effort == "exact" or not getattr(engine, "has_ctc_head", False):
            return decoding
        return Shortcut(engine, Letters(self.audio.ctc_alphabet, tokenizer), end, options, decoding)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _asked(self) -> PromptSpec:
        """The prompt, in which phrases have a language: what is said behind it is the transcript alone."""
        if self.phrases is None or self.prompt.language or self.prompt.answer != "language-tag":
            return self.prompt
        names = [one.name for one in self.prompt.languages]
        if not names:
            return self.prompt
        return self.prompt.with_language(ENGLISH if ENGLISH in names else names[0])

    def _around(self, prompt: PromptSpec, seconds: float) -> int:
        """Most tokens that an answer about so many seconds has beside its transcript."""
        kind = AnswerReader.of(prompt).answer
        frame = len(self._ids(opening_of(kind))) + len(self._ids(closing_of(kind)))
        return max(prompt.opening_ids, frame * frames_in(kind, seconds))

    def _behind(self, prompt: PromptSpec) -> tuple[tuple[int, ...], ...]:
        """What `Engine.start` is told of the tokens behind the audio: nothing, where they are always the same."""
        return (prompt.after_ids,) if prompt.languages else ()

    def _opened(self, prompt: PromptSpec) -> tuple[tuple[int, ...], ...]:
        """As `_behind`, for phrases: what an answer has before its transcript is said already."""
        reader = AnswerReader.of(prompt)
        if self.phrases is None or reader.plain:
            return self._behind(prompt)
        return ((*prompt.after_ids, *self._ids(opening_of(reader.answer))),)

    def _segment(
        self,
        samples: Float32,
        offset: int,
        draft: Sequence[int],
        *,
        heard: bool = False,
        began: float | None = None,
    ) -> Generator[str, None, Segment]:
        """Decode one piece.

        Args:
            samples: (n,) float32.
            offset: its place in the recording, in samples.
            draft: see `stream`.
            heard: it is known that there is speech in it.
            began: `time.perf_counter()` when work on it began; now, if not given.
        """
        rate = self.audio.sampling_rate
        began = time.perf_counter() if began is None else began
        t0, t1 = offset / rate, (offset + len(samples)) / rate
        if not worth_decoding(samples, self.speech_gate, self.options, heard=heard):
            return silent_segment(t0, t1, time.perf_counter() - began)
        embeddings = self.engine.encode(samples)
        encoded = time.perf_counter()
        prompt, decoding, letters = self._asked(), self._decoding, self.engine.ctc_log_probs
        cap = self.options.token_cap(self.audio.heard_seconds(len(samples))) + self._around(prompt, t1 - t0)
        decoded = decoding.sure(letters, cap) if isinstance(decoding, Shortcut) else None
        prefilled = time.perf_counter()
        if decoded is None:
            logits = self.engine.start(embeddings, *self._opened(prompt))
            prefilled = time.perf_counter()
            utterance = Prefilled(embeddings, logits, letters, cap, draft)
            decoded = yield from decoding.decode(utterance)
        else:
            yield decoded.text
        ended = time.perf_counter()
        timings = Timings(
            audio=len(samples) / rate,
            encode=encoded - began,
            prefill=prefilled - encoded,
            decode=ended - prefilled,
            first_token=prefilled - began,
            total=ended - began,
        )
        return Segment(
            t0=t0,
            t1=t1,
            text=decoded.text,
            tokens=decoded.tokens,
            audio_tokens=len(embeddings),
            finish_reason=decoded.reason,
            timings=timings,
            passes=decoded.passes,
            phrase=decoded.phrase,
            language=decoded.language or prompt.language or None,
            turns=self._turns(decoded, t0, t1),
        )

    def _turns(self, decoded: Decoded, t0: float, t1: float) -> tuple[Turn, ...]:
        """Who said what, as far as the text goes: a loop that was cut is nobody's."""
        reader = AnswerReader.of(self.prompt)
        if reader.plain or decoded.phrase is not None:
            return ()
        found: list[Turn] = []
        left = decoded.text
        for turn in reader.turns(
            self.tokenizer.decode(list(decoded.tokens), skip_special_tokens=True), t0, t1
        ):
            if not left.startswith(turn.text):
                return (*found, replace(turn, text=left)) if left else tuple(found)
            found.append(turn)
            left = left.removeprefix(turn.text).lstrip()
        return tuple(found)


def _finished(steps: Generator[str, None, Segment]) -> Segment:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            segment: Segment = done.value
            return segment


def _join(texts: list[str]) -> str:
    return " ".join(text for text in texts if text)
