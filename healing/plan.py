"""What a healing run is: every setting that decides its result, and the errors it can end with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from prunella.device_runtime.base.errors import PrunellaError, UsageError

STAGES = ("transcript", "ctc", "ctc-head")
PARTS = ("projector", "decoder", "encoder")
PRECISIONS = ("auto", "fp32", "bf16")
COMPILE = ("auto", "on", "off")
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

    variants: int = 4
    speed: float = 0.1  # 1 - speed ... 1 + speed
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

    stage: str = "transcript"
    lora: str = "all"  # "all", "receiving", or layers such as "0,3:7"
    rank: int = 32  # 0: no LoRA, the layers' own weights are trained
    alpha: float | None = None  # default: the rank
    lora_dropout: float = 0.0
    train: tuple[str, ...] = ("projector", "decoder")
    decoder_lr: float = 5e-4
    projector_lr: float = 5e-4
    encoder_lr: float = 1e-4
    ctc_head_lr: float = 2e-3
    warmup: float = 0.05  # share of the run
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    scale_weight: float = 0.02  # pulls the RMS of the projector's output towards that of the token embeddings
    ctc_weight: float = (
        0.0  # of a CTC loss beside the transcript's: keeps the audio embeddings near their tokens
    )
    kl_weight: float = 0.5  # share of the teacher's distribution in the loss, when there is a teacher
    hidden_weight: float = 0.0  # of the distance to the teacher's hidden states behind what was cut
    new_ctc_head: bool = False  # a head that has learned nothing in place of the model's
    rounding: int = 0  # train with 4-bit weights that share a scale in blocks of so many; 0: as they are
    rounding_steps: int = 10  # after which they are rounded anew
    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch_positions: int = 4_096  # decoder positions of one optimiser step, over all processes
    micro_positions: int = 2_048  # of one forward pass, padding included
    curriculum: bool = False  # the first epoch goes from short to long clips
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    precision: str = "auto"
    compile: str = (
        "auto"  # the decoder's layers by torch.compile; "auto": on a CPU in bf16, for runs that are long
    )
    base_bits: int = 0  # 4: QLoRA
    gradient_checkpointing: bool = False
    checkpoint_steps: int | None = None
    checkpoint_minutes: float = 3.0
    dev_steps: int | None = None
    dev_minutes: float = 10.0
    patience: int = 0  # evaluations without a better dev WER after which the run ends; 0: never

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
    def needs_alignment(self) -> bool:
        """Whether a CTC loss is computed, alone or beside the transcript's."""
        return self.stage == "ctc" or (self.stage == "transcript" and self.ctc_weight > 0)

    @property
    def scaling_alpha(self) -> float:
        return self.rank if self.alpha is None else self.alpha

    def identity(self) -> dict[str, Any]:
        """The settings that decide what a step computes."""
        return json.loads(json.dumps({key: value for key, value in asdict(self).items() if key not in _FREE}))

    def with_limits(self, **limits: Any) -> HealingPlan:
        """A copy that ends elsewhere."""
        return replace(self, **limits)


def fingerprint(*facts: Any) -> str:
    """Short hex digest of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise UsageError(message)
