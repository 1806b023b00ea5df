"""`config.json` of a checkpoint: everything about a speech LLM that its weights do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.base.files import write_json
from prunella.device_runtime.bundle import AudioSpec, FeatureSpec
from prunella.device_runtime.transcript import DecodeOptions

if TYPE_CHECKING:
    from torch import Tensor

Count = TypeVar("Count", int, "Tensor")
_ENCODER_HOP = 320  # samples that become one encoder frame
CONFIG_NAME = "config.json"
_MEL_FRAMES_PER_ENCODER_FRAME = 2  # Whisper's second convolution has stride 2
_HOP_LENGTH = 160


class ModelConfig(Protocol):
    """What every speech LLM's configuration says: `SpeechLLMConfig` of prunella's own folder, `StockConfig` of a stock class."""

    @property
    def family(self) -> str:
        """Its name."""
        ...

    @property
    def text_style(self) -> str:
        """How the model writes, see device_runtime/decoding/text_style.py."""
        ...

    @property
    def ctc_alphabet(self) -> str:
        """Letters of the CTC head; "": there is none."""
        ...

    @property
    def decode(self) -> DecodeOptions:
        """Limits and guards."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """Base model, pruning, healing."""
        ...

    @property
    def audio(self) -> AudioSpec:
        """How samples become audio tokens, as the device needs it."""
        ...

    @property
    def encoder_width(self) -> int:
        """Of an encoder frame."""
        ...

    @property
    def frames_per_token(self) -> int:
        """Encoder frames that become one audio token."""
        ...

    @property
    def samples_per_frame(self) -> float:
        """Samples that become one encoder frame."""
        ...

    def encoder_frames(self, valid: Count) -> Count:
        """Encoder frames of so many valid feature frames; of one number, or a tensor of them."""
        ...

    def audio_tokens(self, encoder_frames: Count) -> Count:
        """Audio tokens of so many encoder frames; of one number, or a tensor of them."""
        ...

    def with_provenance(self, **facts: Any) -> ModelConfig:
        """A copy with `facts` added to the provenance."""
        ...

    def with_alphabet(self, alphabet: str) -> ModelConfig:
        """A copy for a CTC head with these letters; "" for none."""
        ...

    def with_decode(self, decode: DecodeOptions) -> ModelConfig:
        """A copy with other limits and guards."""
        ...


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Hyper-parameters of a Whisper encoder, under their Hugging Face names."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int = 80
    max_source_positions: int = 1500


@dataclass(frozen=True)
class Prompt:
    """The fixed text around the audio. `audio_placeholder` is what stands for the audio where both are one string."""

    before_audio: str
    after_audio: str
    eos_token: str
    audio_placeholder: str = "<|audio|>"


@dataclass(frozen=True)
class SpeechLLMConfig:
    """A speech LLM of a family of the layout "own"; the decoder has a `config.json` of its own."""

    audio_encoder: AudioEncoderConfig
    stack_factor: int
    projector_hidden_size: int
    text_hidden_size: int
    prompt: Prompt
    family: str = "ultravox"
    projector_norm_eps: float = 1e-6
    sampling_rate: int = 16_000
    text_style: str = "as-is"  # how the model writes, see device_runtime/decoding/text_style.py
    extra_padding: int = 0  # samples of silence after the padding to whole stacks
    ctc_alphabet: str = ""  # letters of the CTC head (ctc_head.py); none: there is no head
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cut = self.provenance.get("pruning")
        if isinstance(cut, Mapping):  # as prunella wrote it while it remembered the last cut alone
            object.__setattr__(self, "provenance", {**self.provenance, "pruning": [cut]})

    @property
    def mel_frames_per_token(self) -> int:
        """Log-mel frames that become one audio token."""
        return _MEL_FRAMES_PER_ENCODER_FRAME * self.stack_factor

    @property
    def samples_per_token(self) -> int:
        """Samples that become one audio token."""
        return _HOP_LENGTH * self.mel_frames_per_token

    @property
    def longest_mel_frames(self) -> int:
        """Log-mel frames that the audio encoder has positions for."""
        return _MEL_FRAMES_PER_ENCODER_FRAME * self.audio_encoder.max_source_positions

    def encoder_frames(self, mel_frames: Count) -> Count:
        """Frames that the audio encoder makes of so many log-mel frames; one number, or a tensor of them."""
        return mel_frames // _MEL_FRAMES_PER_ENCODER_FRAME

    def audio_tokens(self, encoder_frames: Count) -> Count:
        """Audio tokens that the projector makes of so many encoder frames; one number, or a tensor of them."""
        return encoder_frames // self.stack_factor

    @property
    def audio(self) -> AudioSpec:
        """The same numbers as the device needs them."""
        features = FeatureSpec(
            num_mel_bins=self.audio_encoder.num_mel_bins,
            multiple=self.samples_per_token,
            extra=self.extra_padding,
        )
        return AudioSpec(
            sampling_rate=self.sampling_rate,
            features=features,
            samples_per_token=self.samples_per_token,
            ctc_alphabet=self.ctc_alphabet,
        )

    @property
    def encoder_width(self) -> int:
        """Of an encoder frame."""
        return self.audio_encoder.d_model

    @property
    def frames_per_token(self) -> int:
        """Encoder frames that become one audio token."""
        return self.stack_factor

    @property
    def samples_per_frame(self) -> float:
        """Samples that become one encoder frame."""
        return _ENCODER_HOP

    def with_provenance(self, **facts: Any) -> SpeechLLMConfig:
        """A copy with `facts` added to the provenance."""
        return replace(self, provenance={**self.provenance, **facts})

    def with_alphabet(self, alphabet: str) -> SpeechLLMConfig:
        """A copy for a CTC head with these letters; "" for none."""
        return replace(self, ctc_alphabet=alphabet)

    def with_decode(self, decode: DecodeOptions) -> SpeechLLMConfig:
        """A copy with other limits and guards."""
        return replace(self, decode=decode)

    def save(self, folder: Path) -> None:
        """Write `config.json` into `folder`."""
        write_json(folder / CONFIG_NAME, asdict(self))

    @staticmethod
    def load(folder: Path) -> SpeechLLMConfig:
        """Read `config.json` from `folder`.

        Raises:
            CheckpointError: missing, not JSON, a key that does not belong there, or a value of another type or out of its bounds.
        """
        path = folder / CONFIG_NAME
        if not path.is_file():
            raise CheckpointError(f"{folder} holds no {CONFIG_NAME}: not a prunella checkpoint")
        try:
            body = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            for kind, table in (
                (SpeechLLMConfig, body),
                (AudioEncoderConfig, body.get("audio_encoder")),
                (Prompt, body.get("prompt")),
                (DecodeOptions, body.get("decode")),
            ):
                unknown = set(table or ()) - {entry.name for entry in fields(kind)}
                if unknown:
                    raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
            return msgspec.convert(body, SpeechLLMConfig)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} is not a prunella checkpoint's config ({error}): save the model again"
            ) from error
