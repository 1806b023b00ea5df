"""What `bundle.json` says, as data: how audio becomes features, the prompt, shapes, files, provenance.

Checked where it is read (`manifest_reader.py`); constructors take what they are given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from msgspec import Meta

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.languages import primary_language
from prunella.device_runtime.transcript import DecodeOptions

SCHEMA_VERSION = 2
HOP_LENGTH = 160  # samples between two frames of features
WINDOW_LENGTH = 400  # samples that a frame is made of
_ASKED = 40  # characters of a language that nobody knows
_MOST = 2**53  # beyond it a float is no longer every integer
# Bounds are far beyond any model, and below what would take the memory or the threads of whoever opens the bundle.
NotNegative = Annotated[int, Meta(ge=0, le=_MOST)]
Count = Annotated[int, Meta(ge=1, le=2**16)]
Size = Annotated[int, Meta(ge=1, le=2**26)]
Token = Annotated[int, Meta(ge=0, lt=2**26)]
Hertz = Annotated[int, Meta(ge=1_000, le=768_000)]
Samples = Annotated[int, Meta(ge=0, le=2**19)]  # half a minute, as windows have
EngineName = Annotated[str, Meta(pattern="^(onnx|gguf)$")]


OptionValue = str | int | float | bool


@dataclass(frozen=True)
class Provider:
    """One execution provider of ONNX Runtime with its options, by the names that ONNX Runtime gives them."""

    name: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureSpec:
    """How samples become the audio encoder's input: padding, then Whisper's log-mel or Kaldi's (`sound/features.py`).

    Attributes:
        kind: "log-mel", whose frames are centered and which is scaled by the utterance's loudest bin, or "fbank", Kaldi's: whole
            windows alone, natural logarithms.
        num_mel_bins: their number in a frame.
        min_samples: zeros are put behind shorter audio up to so many samples.
        multiple: zeros are put behind the audio up to a whole multiple of so many samples.
        extra: samples of zeros after that.
        frame_multiple: frames of zeros are put behind the features up to a whole multiple of so many frames.
        valid: which frames are audio's, which the encoder's graph is then told: "all" of them (it is not told), or as many
            as whole hops ("floor") or begun hops ("ceil") are in the audio after `min_samples`; of "fbank" always "all".
        n_fft: of "log-mel", samples that a window is filled up to with zeros before its spectrum is taken.
        mel_scale: of "log-mel", "slaney" with filters of unit area, or "htk" with filters that are 1 at their peaks.
        last_frame: of "log-mel", whether the frame centered on the audio's very end counts.
        low_hertz: of "fbank", where its lowest filter begins.
        high_hertz: of "fbank", where its highest ends.
        gain: of "fbank", what samples in [-1, 1] are multiplied by.
        floor: of "fbank", the least power that a logarithm is taken of.
        remove_offset: of "fbank", whether a window's mean is taken off it.
        stack: frames that stand one above the other in each that the encoder gets; its height is `width`.
        stack_step: frames between two of these. Of "fbank" the first and the last frame are repeated at the ends, of "log-mel"
            frames that fill none are left out.
    """

    kind: Annotated[str, Meta(pattern="^(log-mel|fbank)$")] = "log-mel"
    num_mel_bins: Annotated[int, Meta(ge=1, le=2**9)] = 80
    min_samples: Samples = 0
    multiple: Annotated[int, Meta(ge=1, le=2**19)] = 1_600
    extra: Samples = 1_600
    frame_multiple: Annotated[int, Meta(ge=1, le=2**12)] = 1
    valid: Annotated[str, Meta(pattern="^(all|floor|ceil)$")] = "all"
    n_fft: Annotated[int, Meta(ge=WINDOW_LENGTH, le=2**13)] = WINDOW_LENGTH
    mel_scale: Annotated[str, Meta(pattern="^(slaney|htk)$")] = "slaney"
    last_frame: bool = False
    low_hertz: Annotated[float, Meta(ge=0, le=96_000)] = 20.0
    high_hertz: Annotated[float, Meta(gt=0, le=96_000)] = 8_000.0
    gain: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    floor: Annotated[float, Meta(gt=0, le=1e6)] = 2.0**-23
    remove_offset: bool = True
    stack: Annotated[int, Meta(ge=1, le=2**6)] = 1
    stack_step: Annotated[int, Meta(ge=1, le=2**6)] = 1

    @property
    def width(self) -> int:
        """Numbers in a frame that the encoder gets."""
        return self.num_mel_bins * self.stack

    def padded(self, samples: int) -> int:
        """Of so many samples, as features are made of them."""
        least = max(samples, self.min_samples)
        return least + -least % self.multiple + self.extra

    def valid_frames(self, samples: int) -> int:
        """Frames of audio in the features of so many samples."""
        least = max(samples, self.min_samples)
        if self.kind == "fbank":
            windows = max(0, self.padded(samples) - WINDOW_LENGTH + HOP_LENGTH) // HOP_LENGTH
            return -(-windows // self.stack_step)
        hops = {"all": self.padded(samples) // HOP_LENGTH, "floor": least // HOP_LENGTH}
        frames = hops.get(self.valid, -(-least // HOP_LENGTH)) + self.last_frame
        return frames // self.stack_step


@dataclass(frozen=True)
class AudioSpec:
    """How samples become features, and features become audio tokens."""

    sampling_rate: Hertz = 16_000
    features: FeatureSpec = field(default_factory=FeatureSpec)
    # The least that become one audio token: room is made by it.
    samples_per_token: Annotated[int, Meta(ge=1, le=2**24)] = (
        1_600  # hop (160) * convolution stride (2) * stack factor (5)
    )
    max_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 29.5  # longer recordings are split
    ctc_alphabet: str = ""  # letters that a CTC head hears beside the embeddings; none: there is no head

    def longest_tokens(self, seconds: float) -> int:
        """Most audio tokens that so many seconds become."""
        samples = self.features.padded(int(seconds * self.sampling_rate))
        # What is filled up with frames may become tokens too: whole windows do.
        filled = self.features.frame_multiple * self.features.stack_step * HOP_LENGTH
        return (samples + -samples % filled) // self.samples_per_token + 2

    def heard_seconds(self, samples: int) -> float:
        """Seconds that a token cap is reckoned by: whole windows of silence behind the audio do not count."""
        windows = self.features.multiple >= self.sampling_rate
        return (samples if windows else self.features.padded(samples)) / self.sampling_rate


@dataclass(frozen=True)
class PromptSegment:
    """A piece of the prompt: `text` with its token ids, the "audio", or the slot of a "language" or a "vocabulary"."""

    kind: Annotated[str, Meta(pattern="^(text|audio|language|vocabulary)$")]
    text: str = ""
    ids: tuple[Token, ...] = ()


@dataclass(frozen=True)
class TimeMark:
    """Text that stands among the audio tokens, behind so many of them: how far the audio has come, as the model is told."""

    after: Annotated[int, Meta(ge=0, lt=2**20)]
    text: str
    ids: tuple[Token, ...]


@dataclass(frozen=True)
class Language:
    """What stands in the prompt's language slot when this language is asked for."""

    code: Annotated[str, Meta(min_length=1)]  # ISO 639-1, or 639-3 where that has none: "en", "yue"
    name: Annotated[str, Meta(min_length=1)]  # in English
    text: str
    ids: tuple[Token, ...]


def find_language(languages: Sequence[Language], asked: str) -> Language | None:
    """One of the languages by its code, with or without a region, or its English name, any case; "" and "auto": None.

    Raises:
        UsageError: there is none, or not this one.
    """
    wanted = asked.strip().lower()
    if wanted in ("", "auto"):
        return None
    if not languages:
        raise UsageError("this model's prompt takes no language: leave it out")
    for way in (wanted, primary_language(asked)):
        for one in languages:
            if way in (one.code.lower(), one.name.lower()):
                return one
    names = ", ".join(f"{one.code} ({one.name})" for one in languages)
    raise UsageError(f"this model takes no language '{asked[:_ASKED]}': choose one of {names}")


@dataclass(frozen=True)
class PromptSpec:
    """The prompt, as text and as the token ids that the model was trained on.

    Attributes:
        segments: in order; exactly one is the audio, and a language slot stands behind it. A slot for vocabulary, words that
            are likely to be said, is empty where none are known.
        eos_ids: tokens that end an answer; the first is the one that is taught.
        text_style: see text_style.py.
        answer: how the transcript is read out of what the model says, see answer.py.
        languages: that the slot takes.
        language: code of the one that is in it; "": none, and the model finds out.
        time_marks: in order; an utterance has those that its audio tokens reach.
    """

    segments: tuple[PromptSegment, ...]
    eos_ids: Annotated[tuple[Token, ...], Meta(min_length=1)]
    text_style: Annotated[str, Meta(pattern="^(as-is|lower)$")] = "as-is"
    answer: Annotated[str, Meta(pattern="^(as-is|language-tag|quoted|diarized)$")] = "as-is"
    languages: tuple[Language, ...] = ()
    language: str = ""
    time_marks: tuple[TimeMark, ...] = ()

    @staticmethod
    def around_audio(
        before_audio: str,
        after_audio: str,
        before_ids: tuple[int, ...],
        after_ids: tuple[int, ...],
        eos_ids: tuple[int, ...],
        text_style: str = "as-is",
    ) -> PromptSpec:
        """The plain kind: a text, the audio, a text."""
        pieces = (
            PromptSegment("text", before_audio, before_ids),
            PromptSegment("audio"),
            PromptSegment("text", after_audio, after_ids),
        )
        return PromptSpec(pieces, eos_ids, text_style)

    @property
    def before_audio(self) -> str:
        """The text before the audio."""
        return "".join(piece.text for piece in self._filled(before=True))

    @property
    def after_audio(self) -> str:
        """The text behind the audio."""
        return "".join(piece.text for piece in self._filled(before=False))

    @property
    def before_ids(self) -> tuple[int, ...]:
        """Tokens before the audio."""
        return tuple(token for piece in self._filled(before=True) for token in piece.ids)

    @property
    def after_ids(self) -> tuple[int, ...]:
        """Tokens behind the audio."""
        return tuple(token for piece in self._filled(before=False) for token in piece.ids)

    @property
    def most_ids(self) -> int:
        """Most tokens around the audio and in it, whatever the language, or that the answer takes to name it."""
        pieces = [*(piece.ids for piece in self.segments), *(mark.ids for mark in self.time_marks)]
        return sum(map(len, pieces)) + max((len(one.ids) for one in self.languages), default=0)

    def positions(self, audio_tokens: int) -> int:
        """Of so many audio tokens with all that stands around and among them."""
        among = sum(len(mark.ids) for mark in self.marks_among(audio_tokens))
        return len(self.before_ids) + audio_tokens + among + len(self.after_ids)

    def marks_among(self, audio_tokens: int) -> tuple[TimeMark, ...]:
        """The time marks that so many audio tokens reach."""
        return tuple(mark for mark in self.time_marks if mark.after <= audio_tokens)

    def audio_span(self, audio_tokens: int, placeholder: int) -> list[int]:
        """Token ids of so many audio tokens, each a placeholder, and of the time marks among them."""
        span: list[int] = []
        marks = self.marks_among(audio_tokens)
        for before, mark in zip((0, *(mark.after for mark in marks)), marks, strict=False):
            span += [placeholder] * (mark.after - before) + [*mark.ids]
        return span + [placeholder] * (audio_tokens - (marks[-1].after if marks else 0))

    @property
    def opening_ids(self) -> int:
        """Most tokens that an answer says before its transcript: the longest language, where none is in the prompt."""
        tagged = self.answer == "language-tag" and not self.language
        return max((len(one.ids) for one in self.languages), default=0) if tagged else 0

    def with_language(self, asked: str) -> PromptSpec:
        """The prompt for a language, see `find_language`; "" leaves it to the model.

        Raises:
            UsageError: the model's prompt has no place for a language, or not for this one.
        """
        found = find_language(self.languages, asked)
        return replace(self, language=found.code if found else "")

    @property
    def takes_vocabulary(self) -> bool:
        """Whether there is a place for words that are likely to be said."""
        return any(piece.kind == "vocabulary" for piece in self.segments)

    def with_vocabulary(self, text: str, ids: tuple[int, ...]) -> PromptSpec:
        """The prompt with words that are likely to be said, and their token ids; "" for none.

        Raises:
            UsageError: the model's prompt has no place for them.
        """
        if not self.takes_vocabulary:
            raise UsageError("this model's prompt takes no vocabulary: leave it out")
        told = PromptSegment("vocabulary", text, ids)
        return replace(
            self,
            segments=tuple(told if piece.kind == "vocabulary" else piece for piece in self.segments),
        )

    def _filled(self, *, before: bool) -> list[PromptSegment]:
        """Segments of text on one side of the audio, the language in its slot."""
        at = next(place for place, piece in enumerate(self.segments) if piece.kind == "audio")
        chosen = next((one for one in self.languages if one.code == self.language), None)
        pieces = []
        for piece in self.segments[:at] if before else self.segments[at + 1 :]:
            if piece.kind != "language":
                pieces.append(piece)
            elif chosen is not None:
                pieces.append(PromptSegment("text", chosen.text, chosen.ids))
        return pieces


@dataclass(frozen=True)
class DecoderSpec:
    """Shapes that an engine needs before it opens the graph."""

    num_layers: Count
    hidden_size: Size
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Size
    max_context: Annotated[int, Meta(ge=1, le=2**20)] = 2_048


@dataclass(frozen=True)
class MmprojSpec:
    """llama.cpp's own audio half of a bundle with GGUF files.

    Attributes:
        projector: llama.cpp's name of its layout; "": the bundle has none, and our encoder feeds llama.cpp's decoder alone.
        note: why there is none, or how what it hears differs from what the model was trained on.
        prompt_tokens: whether it brings along the prompt's last token before the audio and its first behind it.
    """

    projector: str = ""
    note: str = ""
    prompt_tokens: bool = False


@dataclass(frozen=True)
class Buckets:
    """Lengths are filled up to whole multiples of these, for providers that plan anew for every length; 0: they stay as they are.

    Attributes:
        encoder_frames: of features, where the encoder's graph is told how many of them are the audio's.
        prefill: positions that the decoder takes at once.
    """

    encoder_frames: Annotated[int, Meta(ge=0, le=2**12)] = 0
    prefill: Annotated[int, Meta(ge=0, le=2**12)] = 0


@dataclass(frozen=True)
class FileEntry:
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    bytes: NotNegative


@dataclass(frozen=True)
class BundleManifest:
    """`bundle.json`. `provenance` is free-form: base model, block, bridge, healing, recipe, WER before and after."""

    name: str
    family: str
    target: str
    engines: Annotated[tuple[EngineName, ...], Meta(min_length=1)]  # in order of preference: "onnx", "gguf"
    recipe: str
    audio: AudioSpec
    prompt: PromptSpec
    decoder: DecoderSpec
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    threads: Annotated[int, Meta(ge=0, le=2**12)] = 0  # 0: one per physical core
    providers: tuple[Provider, ...] = ()  # of ONNX Runtime, in order of preference; none: the processor
    buckets: Buckets = field(default_factory=Buckets)
    llama: dict[str, OptionValue] = field(default_factory=dict)  # llama.cpp's settings, by its own names
    mmproj: MmprojSpec | None = None  # None: no GGUF files, or a bundle of before
    precision: dict[str, str] = field(
        default_factory=dict
    )  # parts that the target stores otherwise than the recipe
    provenance: dict[str, Any] = field(default_factory=dict)
    created_by: str = ""
    files: dict[str, FileEntry] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def dumps(self) -> str:
        """Canonical text, with a checksum of itself: a byte changed by accident is seen. It keeps no attacker away."""
        return canonical(json.loads(json.dumps(asdict(self))))


def canonical(body: dict[str, Any]) -> str:
    """The text of a manifest's object, with a checksum of itself."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "manifest_sha256": digest}, indent=2, sort_keys=True) + "\n"
