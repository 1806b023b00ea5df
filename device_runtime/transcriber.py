"""From samples to a `Transcript`, over any engine: split, gate, encode, prefill, decode under the guards."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.cores import check_threads
from prunella.device_runtime.base.errors import AudioError, BundleError, EngineError, UsageError
from prunella.device_runtime.bundle import AudioSpec, Bundle, PromptSpec, open_bundle
from prunella.device_runtime.decoding.beam_search import BeamSearch, check_beams
from prunella.device_runtime.decoding.ctc_rescorer import CtcPrefixRescorer, TokenSpeller
from prunella.device_runtime.decoding.draft import (
    LONGEST_BELIEVED,
    Draft,
    draft_of_tokens,
    open_drafter,
)
from prunella.device_runtime.decoding.engine import PAYING_BEAMS, BeamEngine, Engine
from prunella.device_runtime.decoding.greedy import GreedyDecoder
from prunella.device_runtime.decoding.phrases import MIN_SCORE, PhraseTrie, find_phrase
from prunella.device_runtime.decoding.repeat_stop import RepeatStop
from prunella.device_runtime.decoding.template_text import strip_template
from prunella.device_runtime.decoding.text_style import style_text
from prunella.device_runtime.sound.audio import Audio, check_samples, is_silent, split_at_quiet_points
from prunella.device_runtime.sound.speech_gate import (
    SHORTEST_SECONDS,
    LevelMeter,
    SpeechGate,
    doubts,
    open_speech_gate,
    speech_listener,
)
from prunella.device_runtime.sound.utterances import cut_in_pauses
from prunella.device_runtime.transcript import (
    DecodeOptions,
    FinishReason,
    Phrase,
    PhraseMatch,
    Segment,
    Timings,
    Transcript,
    silent_segment,
)

_GATE_GAIN = 30.0  # dB, by which `SileroVad` amplifies what is quiet
ENGINES = ("onnx", "gguf", "mtmd")  # mtmd: a bundle's GGUF files through llama.cpp alone, slower


class Transcriber:
    """Transcribes recordings of any length with one engine. Not thread-safe, as the engine is not.

    Args:
        engine: any `Engine`: ONNX Runtime on the device, PyTorch on the build machine.
        tokenizer: the decoder's.
        audio: how samples become audio tokens.
        prompt: whose end-of-sequence tokens end a transcript.
        options: limits and guards.
        speech_gate: what tells speech from noise before anything is encoded; none: only silence is told.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        audio: AudioSpec,
        prompt: PromptSpec,
        options: DecodeOptions | None = None,
        speech_gate: SpeechGate | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.audio = audio
        self.prompt = prompt
        self.options = options or DecodeOptions()
        self.phrases: PhraseTrie | None = None
        self._speech_gate = speech_gate
        self._drafter = open_drafter(engine, tokenizer, prompt.text_style, self.options)
        self._speller = TokenSpeller(audio.ctc_alphabet, lambda token: tokenizer.decode([token]))

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
        listener = speech_listener(self._speech_gate, self.options)
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
        if self._speech_gate is not None:
            self._speech_gate.hears_speech(samples, 1.0)
        embeddings = self.engine.encode(samples)
        token = int(np.argmax(self.engine.start(embeddings)))
        count = min(LONGEST_BELIEVED, self.options.token_cap(seconds))
        self.engine.extend([token] * count)
        self.engine.rewind(count)
        self.engine.step(token)
        if (beams := self.options.beams) > 1 and isinstance(self.engine, BeamEngine):
            self.engine.step_beams([token] * beams, [0] * beams)

    def follow(self, beams: int) -> None:
        """Follow so many transcripts at once from now on (`beam_search.py`).

        Args:
            beams: 1 is greedy; 0: as many as pay, where the model has a CTC head and the engine can, or as the bundle says.

        Raises:
            UsageError: fewer than 0, or more than any engine follows.
            EngineError: the engine cannot follow so many.
        """
        check_beams(beams)
        engine = self.engine
        if beams == 0 and isinstance(engine, BeamEngine):
            beams = max(PAYING_BEAMS if engine.has_ctc_head else 1, self.options.beams)
        beams = beams or 1
        most = engine.most_beams if isinstance(engine, BeamEngine) else 1
        if beams > (most or beams):
            follows = "one transcript at a time" if most == 1 else f"{most} transcripts at most, not {beams}"
            raise EngineError(f"{self.engine.name} follows {follows}: use --engine onnx, or fewer --beams")
        self.options = replace(self.options, beams=beams)

    def following(self, beams: int) -> Transcriber:
        """A transcriber over the same engine that follows so many: see `follow`. Itself, if it does."""
        other = copy.copy(self)
        other.follow(beams)
        return self if other.options == self.options else other

    def limited_to(self, phrases: Iterable[Phrase], *, min_score: float = MIN_SCORE) -> Transcriber:
        """A transcriber over the same engine that can say nothing but these phrases, or nothing at all.

        A segment then carries its `phrase`; its text is the phrase as the list writes it.

        Raises:
            UsageError: as `PhraseTrie`.
        """
        limited = copy.copy(self)
        prompt = self.prompt
        limited.phrases = PhraseTrie(
            phrases, self.tokenizer, prompt.eos_ids, prompt.text_style, min_score=min_score
        )
        return limited

    def score(self, samples: npt.ArrayLike, text: str) -> tuple[float, int]:
        """Cross-entropy of a given transcript.

        Args:
            samples: (n,) mono samples at 16 kHz, at most `audio.max_seconds`.
            text: what was said; brought into the form that the model writes (`prompt.text_style`).

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
        tokens = self.tokenizer.encode(style_text(text, self.prompt.text_style), add_special_tokens=False).ids
        tokens.append(self.prompt.eos_ids[0])
        losses = self.engine.score(self.engine.encode(checked), tokens)
        return float(np.sum(losses, dtype=np.float64)), len(tokens)

    def _transcript(self, segments: Sequence[Segment]) -> Transcript:
        return Transcript(
            text=_join([segment.text for segment in segments]),
            segments=tuple(segments),
            timings=sum((segment.timings for segment in segments), Timings()),
            engine=self.engine.name,
            options=self.options,
        )

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
        options = self.options
        rate = self.audio.sampling_rate
        began = time.perf_counter() if began is None else began
        tokens: list[int] = []
        audio_tokens = 0
        encoded = prefilled = first = began
        reason: FinishReason = "silence"
        text = ""
        passes = 0
        phrase: PhraseMatch | None = None
        long_enough = len(samples) >= SHORTEST_SECONDS * rate
        if not options.guards or (long_enough and (heard or self._worth_decoding(samples))):
            embeddings = self.engine.encode(samples)
            audio_tokens = len(embeddings)
            encoded = time.perf_counter()
            logits = self.engine.start(embeddings)
            prefilled = time.perf_counter()
            first = prefilled
            if self.phrases is not None:
                phrase = find_phrase(self.engine, logits, self.phrases)
                text, reason = (phrase.phrase.text, "phrase") if phrase.phrase else ("", "no-phrase")
                tokens, passes = list(phrase.tokens), phrase.passes
            else:
                cap = options.token_cap(audio_tokens * self.audio.samples_per_token / rate)
                guard = RepeatStop(
                    options.repeat_max_words,
                    options.repeat_times if options.guards else 0,
                    options.repeat_min_words,
                )
                if options.beams > 1 and isinstance(self.engine, BeamEngine):
                    tokens, text, reason, passes = yield from self._search(self.engine, logits, cap, guard)
                else:
                    decoder = GreedyDecoder(self.engine, logits, self._draft(embeddings, draft))
                    text, reason = yield from self._decode(decoder, cap, guard, tokens)
                    passes = decoder.passes
        ended = time.perf_counter()
        return Segment(
            t0=offset / rate,
            t1=(offset + len(samples)) / rate,
            text=text,
            tokens=tuple(tokens),
            audio_tokens=audio_tokens,
            finish_reason=reason,
            timings=Timings(
                audio=len(samples) / rate,
                encode=encoded - began,
                prefill=prefilled - encoded,
                decode=ended - prefilled,
                first_token=first - began,
                total=ended - began,
            ),
            passes=passes,
            phrase=phrase,
        )

    def _worth_decoding(self, samples: Float32) -> bool:
        """Neither silence nor, where a gate is there, something else than speech."""
        probability = self.options.speech_probability
        if self._speech_gate is None or probability <= 0:
            return not is_silent(samples, self.options.silence_dbfs)
        # Quiet speech is below what is called silence where nothing better judges: the gate amplifies it.
        return not is_silent(
            samples, self.options.silence_dbfs - _GATE_GAIN
        ) and self._speech_gate.hears_speech(samples, probability)

    def _draft(self, embeddings: Float32, draft: Sequence[int]) -> Draft | None:
        """What to verify while decoding: the caller's tokens, else what the audio embeddings are near to."""
        if draft:
            return draft_of_tokens(draft)
        return self._drafter.draft(embeddings) if self._drafter and self.options.draft else None

    def _search(
        self, engine: BeamEngine, logits: Float32, cap: int, guard: RepeatStop
    ) -> Generator[str, None, tuple[list[int], str, FinishReason, int]]:
        """Beam search → tokens, text, why it ended, and passes. It yields the text in which all transcripts agree."""
        options, end, letters = self.options, self.prompt.eos_ids, self.engine.ctc_log_probs
        rescorer = None
        if letters is not None and options.ctc_weight > 0:
            rescorer = CtcPrefixRescorer(letters, self._speller, end)
        search = BeamSearch(options.beams, end, rescorer, options.ctc_weight)
        passes = shown = 0
        pieces, agreed = DecodeStream(skip_special_tokens=True), ""
        tokens, parents = search.advance(logits[None])
        while tokens and passes < cap:
            passes += 1
            tokens, parents = search.advance(engine.step_beams(tokens, parents))
            fresh = [token for token in search.settled[shown:] if token not in end]
            shown += len(fresh)
            agreed += "".join(pieces.step(self.tokenizer, token) or "" for token in fresh)
            yield strip_template(agreed)
        said = list(search.best.tokens)
        reason: FinishReason = "eos" if said and said[-1] in end else "length"
        said = [token for token in said if token not in end][:cap]
        guard.feed(self.tokenizer.decode(said, skip_special_tokens=True))
        guard.finish()
        return said, strip_template(guard.text), "repeat" if guard.looped else reason, passes

    def _decode(
        self, decoder: GreedyDecoder, cap: int, guard: RepeatStop, tokens: list[int]
    ) -> Generator[str, None, tuple[str, FinishReason]]:
        """Greedy decode into `tokens`, yielding the text so far; the value is the final text and why it ended."""
        pieces = DecodeStream(skip_special_tokens=True)
        reason: FinishReason = "length"
        for token in decoder.tokens(cap):
            if token in self.prompt.eos_ids:
                reason = "eos"
                break
            tokens.append(token)
            piece = pieces.step(self.tokenizer, token)
            if piece:
                if guard.feed(piece):
                    break
                yield strip_template(guard.text)
        if not guard.looped:
            # The stream holds back the bytes of an unfinished character; the whole text shows them.
            whole = self.tokenizer.decode(tokens, skip_special_tokens=True)
            guard.feed(whole[len(guard.text) :] if whole.startswith(guard.text) else "")
            guard.finish()
        return strip_template(guard.text), "repeat" if guard.looped else reason


def open_transcriber(
    bundle_path: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    options: DecodeOptions | None = None,
) -> Transcriber:
    """Open and verify a bundle, and load one of its engines.

    Args:
        bundle_path: the bundle's directory.
        engine: one of `ENGINES`; by default the first that the bundle prefers and this prunella has.
        threads: of the engine; by default the bundle's, 0 for one per physical core.
        options: in place of the bundle's.

    Raises:
        BundleError: missing or corrupt.
        EngineError: the bundle has no such engine, or it cannot run here.
        UsageError: no engine of this name exists, or a number of threads out of range.
    """
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"no engine '{engine}': choose one of {', '.join(ENGINES)}")
    check_threads(threads)
    bundle = open_bundle(bundle_path)
    manifest = bundle.manifest
    usable = [name for name in manifest.engines if name in ENGINES]
    usable += ["mtmd"] if "gguf" in usable else []
    if engine not in (None, *usable) or not usable:
        has = ", ".join(usable or manifest.engines) or "none"
        raise EngineError(
            f"{bundle_path} has no engine {engine or 'that this prunella runs'} (it has {has}): "
            f"export the model for a target that uses {'gguf' if engine == 'mtmd' else engine or 'onnx'}"
        )
    tokenizer_file = bundle.file("tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise BundleError(f"{tokenizer_file} cannot be read ({error}): export the bundle again") from error
    chosen = _open_engine(bundle, engine or usable[0], threads)
    return Transcriber(
        chosen, tokenizer, manifest.audio, manifest.prompt, options or manifest.decode, open_speech_gate()
    )


def _open_engine(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """Each brings in a library that is an extra."""
    if name == "onnx":
        from prunella.device_runtime.engines.onnx_engine import OnnxEngine

        return OnnxEngine.open(bundle, threads=threads)
    from prunella.device_runtime.engines.gguf_engine import GgufEngine

    return GgufEngine.open(bundle, threads=threads, audio_half="mtmd" if name == "mtmd" else "onnx")


def _finished(steps: Generator[str, None, Segment]) -> Segment:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def _join(texts: list[str]) -> str:
    return " ".join(text for text in texts if text)
