"""`prunella.json` beside a checkpoint of a stock class: what prunella knows of the model and transformers has no place for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.base.files import write_json
from prunella.device_runtime.bundle import AudioSpec
from prunella.device_runtime.transcript import DecodeOptions
from prunella.speech_llm.families.family import AudioGeometry, Count

FACTS_NAME = "prunella.json"


@dataclass(frozen=True)
class StockFacts:
    """The file.

    Attributes:
        family: `model_type` of the model.
        text_style: how it writes, see device_runtime/decoding/text_style.py.
        trimmed: whether it was healed on audio of its true length, where the stock model hears whole windows.
        ctc_alphabet: letters of the CTC head in `ctc_head.safetensors`; none: there is no head.
        decode: limits and guards.
        provenance: base model, pruning, healing.
    """

    family: str
    text_style: str = "as-is"
    trimmed: bool = False
    ctc_alphabet: str = ""
    # Nothing of the drafts was measured on other models than the reference.
    decode: DecodeOptions = field(default_factory=lambda: DecodeOptions(draft=False))
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the file into `folder`."""
        write_json(folder / FACTS_NAME, asdict(self))

    @staticmethod
    def load(folder: Path, family: str) -> StockFacts:
        """Read the file of `folder`; a model that prunella has not touched has none.

        Raises:
            CheckpointError: not JSON, of another family, or a key or value that does not belong there.
        """
        path = folder / FACTS_NAME
        if not path.is_file():
            return StockFacts(family, provenance={"base_model": folder.name})
        try:
            body = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            for kind, table in ((StockFacts, body), (DecodeOptions, body.get("decode"))):
                unknown = set(table or ()) - {entry.name for entry in fields(kind)}
                if unknown:
                    raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
            facts = msgspec.convert(body, StockFacts)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be used ({error}): save the model again, or remove the file"
            ) from error
        if facts.family != family:
            raise CheckpointError(f"{path} is of the family '{facts.family}', the model is of '{family}'")
        return facts


@dataclass(frozen=True)
class StockConfig:
    """The configuration of a `SpeechLLM` of a stock class: the file, and what its family derives from `config.json`."""

    facts: StockFacts
    geometry: AudioGeometry = field(repr=False)

    @property
    def family(self) -> str:
        """`model_type`."""
        return self.facts.family

    @property
    def text_style(self) -> str:
        """How the model writes."""
        return self.facts.text_style

    @property
    def ctc_alphabet(self) -> str:
        """Letters of the CTC head."""
        return self.facts.ctc_alphabet

    @property
    def decode(self) -> DecodeOptions:
        """Limits and guards."""
        return self.facts.decode

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the model comes from."""
        return self.facts.provenance

    @property
    def audio(self) -> AudioSpec:
        """How samples become audio tokens."""
        return replace(self.geometry.audio, ctc_alphabet=self.ctc_alphabet)

    @property
    def encoder_width(self) -> int:
        """Of an encoder frame."""
        return self.geometry.encoder_width

    @property
    def frames_per_token(self) -> int:
        """Encoder frames that become one audio token."""
        return self.geometry.frames_per_token

    @property
    def samples_per_frame(self) -> float:
        """Samples that become one encoder frame."""
        return self.geometry.samples_per_frame

    def encoder_frames(self, valid: Count) -> Count:
        """Encoder frames of so many valid feature frames; of one number, or a tensor of them."""
        frames: Count = self.geometry.encoder_frames(valid)
        return frames

    def audio_tokens(self, encoder_frames: Count) -> Count:
        """Audio tokens of so many encoder frames; of one number, or a tensor of them."""
        if self.geometry.audio_tokens is None:
            return encoder_frames // self.frames_per_token
        tokens: Count = self.geometry.audio_tokens(encoder_frames)
        return tokens

    def with_provenance(self, **facts: Any) -> StockConfig:
        """A copy with `facts` added to the provenance."""
        return self.with_facts(provenance={**self.provenance, **facts})

    def with_alphabet(self, alphabet: str) -> StockConfig:
        """A copy for a CTC head with these letters; "" for none."""
        return self.with_facts(ctc_alphabet=alphabet)

    def with_decode(self, decode: DecodeOptions) -> StockConfig:
        """A copy with other limits and guards."""
        return self.with_facts(decode=decode)

    def with_facts(self, **changes: Any) -> StockConfig:
        """A copy with other facts."""
        return replace(self, facts=replace(self.facts, **changes))
