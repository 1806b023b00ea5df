"""What a healing run is: every setting that decides its result, and the errors it can end with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from prunella.device_runtime.base.characters import has_half_characters
from prunella.device_runtime.base.errors import PrunellaError, UsageError
from prunella.healing.option_fields import option

STAGES = ("transcript", "ctc", "ctc-head")
PARTS = ("projector", "decoder", "encoder")
PRECISIONS = ("auto", "fp32", "bf16")
COMPILE = ("auto", "on", "off")
# The headings of `prunella heal --help`, what most need first.
NEEDED, TRAINED, LOSS = "what most runs need", "what is trained", "learning rates and loss"
SPEECH, MACHINE, SAVED = "speech", "memory and speed", "evaluations and checkpoints"
# May change between two sittings of one run: they decide when it ends and what is written, not what a step computes.
_FREE = (
    "steps",
    "epochs",
    "minutes",
    "checkpoint_steps",
    "checkpoint_minutes",
    "dev_steps",
    "dev_minutes",
    "patience",
    "compile",
)


class HealingError(PrunellaError):
    """Training cannot go on: the loss is not finite, a checkpoint belongs to another run, the disk is full."""


@dataclass(frozen=True)
class Augmentation:
    """How training clips are varied. `variants` versions of each clip are made and cached; epochs take them in turn.

    Shares are of the clips: `noisy` get noise at an SNR of `snr_db`, `trailing_silence` get silence up to at most 30 s
    (half of them to exactly 30 s, as llama.cpp pads), and `noise_only` clips without any speech are added, whose
    transcript is empty. `masks`: SpecAugment, time masks a second.
    """

    variants: int = option(4, "augmented versions of each clip, cached", SPEECH, metavar="N")
    speed: float = option(
        0.1,
        "by how much versions are faster or slower at most; more sounds like more speakers",
        SPEECH,
        metavar="SHARE",
    )
    noisy: float = 0.3
    snr_db: tuple[float, float] = (5.0, 30.0)
    gain_db: float = 6.0
    trailing_silence: float = 0.04
    noise_only: float = 0.03
    masks: float = 0.3

    @staticmethod
    def none() -> Augmentation:
        """Every clip as it was recorded, and nothing else."""
        return Augmentation(1, 0.0, 0.0, (0.0, 0.0), 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class HealingPlan:
    """Settings of one run. Of `steps`, `epochs` and `minutes` the first that is reached ends it."""

    stage: str = option(
        "transcript",
        "ctc: align projector and encoder with the tokens first; ctc-head: teach letters to a CTC head on the encoder, "
        "which the runner weighs beside the decoder",
        TRAINED,
        choices=STAGES,
    )
    train: tuple[str, ...] = option(
        ("projector", "decoder"), f"of {','.join(PARTS)}", TRAINED, metavar="PARTS"
    )
    lora: str = option("all", "all, receiving, or layers such as 0,3:7", TRAINED, metavar="LAYERS")
    rank: int = option(32, "LoRA rank; 0: train the layers' own weights", TRAINED, metavar="N")
    alpha: float | None = option(None, "LoRA alpha (default: the rank)", TRAINED, metavar="A")
    lora_dropout: float = 0.0
    new_ctc_head: bool = option(False, "with --stage ctc-head: begin with a head that knows nothing", TRAINED)
    alphabet: str = option(
        "",
        "with --stage ctc-head: letters of a new head (default: English, and what speech in other languages is written with)",
        TRAINED,
        metavar="LETTERS",
    )
    trim_audio: bool = option(
        False,
        "of models that hear whole windows of 30 s (Voxtral, GLM-ASR): learn to hear a recording without the silence behind it",
        TRAINED,
    )
    steps: int | None = option(None, "optimiser steps after which the run ends", NEEDED, metavar="N")
    epochs: float | None = option(None, "passes over the speech after which it ends", NEEDED, metavar="N")
    minutes: float | None = option(
        None, "minutes of training, over all sittings, after which it ends", NEEDED, metavar="M"
    )
    decoder_lr: float = option(
        5e-4, "learning rate of the decoder", LOSS, metavar="RATE", flag="--learning-rate"
    )
    projector_lr: float = option(5e-4, "learning rate of the projector", LOSS, metavar="RATE")
    encoder_lr: float = option(1e-4, "learning rate of the encoder", LOSS, metavar="RATE")
    ctc_head_lr: float = option(2e-3, "learning rate of the CTC head", LOSS, metavar="RATE")
    # A share of the run.
    warmup: float = 0.05
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    kl_weight: float = option(
        0.5, "share of the teacher's distribution in the loss, when there is a teacher", LOSS, metavar="SHARE"
    )
    hidden_weight: float = option(
        0.0, "weight of the distance to the teacher's hidden states behind what was cut", LOSS, metavar="W"
    )
    ctc_weight: float = option(
        0.0,
        "weight of a CTC loss beside the transcript's; audio embeddings near their tokens make drafts that decode faster",
        LOSS,
        metavar="W",
    )
    label_smoothing: float = option(0.0, "label smoothing of the transcript's tokens", LOSS, metavar="SHARE")
    # Pulls the RMS of the projector's output towards that of the token embeddings.
    scale_weight: float = 0.02
    augmentation: Augmentation = Augmentation()
    curriculum: bool = option(False, "the first epoch goes from short to long clips", SPEECH)
    seed: int = option(0, "seed of every draw", SPEECH, metavar="N")
    batch_positions: int = option(
        4_096, "decoder positions of one step, over all processes", MACHINE, metavar="N"
    )
    micro_positions: int = option(
        2_048, "of one forward pass, padding included: what bounds the memory", MACHINE, metavar="N"
    )
    precision: str = option(
        "auto", "of the arithmetic; auto measures what is faster here", MACHINE, choices=PRECISIONS
    )
    compile: str = option(
        "auto",
        "whether the decoder's layers are; auto: in long runs on a CPU in bf16",
        MACHINE,
        choices=COMPILE,
    )
    base_bits: int = option(0, "4: QLoRA, where bitsandbytes supports the device", MACHINE, choices=(0, 4))
    rounding: int = option(
        0,
        "train with 4-bit weights in blocks of so many inputs, for the int4 recipes (32); 0: with weights as they are",
        MACHINE,
        metavar="BLOCK",
    )
    # Steps after which they are rounded anew.
    rounding_steps: int = 10
    gradient_checkpointing: bool = option(False, "less memory, a third more work", MACHINE)
    dev_minutes: float = option(10.0, "minutes between evaluations", SAVED, metavar="M")
    dev_steps: int | None = option(None, "evaluations by steps instead", SAVED, metavar="N")
    patience: int = option(
        0, "evaluations without improvement that end the run (default: never)", SAVED, metavar="N"
    )
    checkpoint_minutes: float = option(
        3.0, "minutes between checkpoints: at most this is lost", SAVED, metavar="M"
    )
    checkpoint_steps: int | None = option(None, "checkpoints by steps instead", SAVED, metavar="N")

    def __post_init__(self) -> None:
        _check(self.stage in STAGES, f"no stage '{self.stage}': choose {' or '.join(STAGES)}")
        unknown = [part for part in self.train if part not in PARTS]
        _check(
            not unknown and bool(self.train),
            f"cannot train {unknown or 'nothing'}: choose from {', '.join(PARTS)}",
        )
        _check(
            self.precision in PRECISIONS,
            f"no precision '{self.precision}': choose from {', '.join(PRECISIONS)}",
        )
        _check(self.compile in COMPILE, f"cannot compile '{self.compile}': choose from {', '.join(COMPILE)}")
        _check(
            self.base_bits in (0, 4), f"{self.base_bits}-bit base weights: only 4 is supported, or 0 for none"
        )
        _check(
            not (self.base_bits and self.rank == 0),
            "4-bit base weights cannot be trained themselves: give --rank",
        )
        _check(
            self.rank >= 0,
            f"rank {self.rank} is negative: give 1 or more, or 0 to train the layers themselves",
        )
        ends = [limit for limit in (self.steps, self.epochs, self.minutes) if limit is not None]
        _check(bool(ends), "nothing says when to stop: give --steps, --epochs or --minutes")
        _check(all(limit > 0 for limit in ends), "--steps, --epochs and --minutes must be positive")
        _check(self.micro_positions > 0 < self.batch_positions, "batch and micro positions must be positive")
        for name in ("ctc_weight", "hidden_weight"):
            weight = getattr(self, name)
            _check(weight >= 0, f"{name} {weight} is negative: give 0 or more")
        _check(
            not self.rounding or (self.rank > 0 and not self.base_bits),
            "--rounding needs a LoRA over whole weights: give --rank, and leave out --base-bits",
        )
        _check(
            not self.new_ctc_head or self.stage == "ctc-head",
            "--new-ctc-head is for --stage ctc-head: name that",
        )
        _check(
            not self.alphabet or self.stage == "ctc-head",
            "--alphabet is for --stage ctc-head: name that",
        )
        _check(
            not has_half_characters(self.alphabet),
            f"the alphabet {self.alphabet!a} is not UTF-8: write it as that",
        )
        _check(
            0 <= self.augmentation.speed < 0.5,
            f"speed {self.augmentation.speed} is a share of the clip's own: give 0 to 0.5",
        )
        _check(self.augmentation.variants >= 1, "there must be at least one variant of each clip")

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained at this stage: the CTC stages run without the decoder, that of the head without the projector."""
        unused = {"transcript": (), "ctc": ("decoder",), "ctc-head": ("decoder", "projector", "encoder")}[
            self.stage
        ]
        return tuple(part for part in self.train if part not in unused)

    @property
    def with_decoder(self) -> bool:
        """Whether the decoder runs at this stage."""
        return self.stage == "transcript"

    @property
    def needs_alignment(self) -> bool:
        """Whether a CTC loss is computed, alone or beside the transcript's."""
        return self.stage == "ctc" or (self.with_decoder and self.ctc_weight > 0)

    @property
    def scaling_alpha(self) -> float:
        return self.rank if self.alpha is None else self.alpha

    def identity(self) -> dict[str, Any]:
        """The settings that decide what a step computes."""
        return json.loads(json.dumps({key: value for key, value in asdict(self).items() if key not in _FREE}))


def fingerprint(*facts: Any) -> str:
    """Short hex digest of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise UsageError(message)
