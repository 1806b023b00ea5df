"""What a healing run would take, reckoned from the model's shapes before its weights are read: memory, arithmetic, hours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from prunella.device_runtime.base.errors import PrunellaError
from prunella.healing.plan import HealingPlan
from prunella.speech_llm.config import SpeechLLMConfig
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.families import find_family
from prunella.speech_llm.load import resolve
from prunella.speech_llm.model_facts import read_facts
from prunella.speech_llm.model_folder import float_bytes

SHARE_OF_RATE = 0.28  # of the matrix rate that a step reaches, docs/healing.md
TEXT_TOKENS, PROMPT_TOKENS, CLIP_SECONDS = 4, 15, 10  # a second of speech; every so many seconds
_AUDIO_TOKENS = 12.5  # a second, where the configuration does not say
_TRAINED = 16  # bytes: the weight, its gradient and two moments in float32
_NF4 = 0.5 + 4 / 64  # bytes, with a float32 scale for 64 weights
FORMULAS = f"""memory = 4 x all weights (the originals) + frozen copies (bf16: 2 x decoder; 4 bits: {_NF4:g} x its layers' matrices, and 2 or 4 x the rest)
         + 4 x the teacher's weights + {_TRAINED} x trained weights (with gradient and moments) + activations + logits
         activations = positions of a pass x layers x (b x (6 hidden + 3 queries + 6 keys + 4 intermediate) + 8 hidden + 2 x heads x longest)
                       (--gradient-checkpointing: b x hidden x (layers + 1) and one layer's); b: 4 bytes, 2 in bf16
         logits = text positions of a pass x vocabulary x 16, and as much again with a teacher
work   = positions x (LoRA: 4, whole layers: 6; --gradient-checkpointing: 2 more) x weights of layers and head
         + positions x 2 x the teacher's
         positions of a second of speech: its audio tokens, {TEXT_TOKENS} of text, {PROMPT_TOKENS} of prompt every {CLIP_SECONDS} s
hours  = work / ({SHARE_OF_RATE:g} x the matrix rate measured here); audio encoding, evaluations and start are not in it"""


@dataclass(frozen=True)
class Shapes:
    """Numbers of a model's weights, and widths of its decoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    queries: int
    keys: int
    vocabulary: int
    matrices: int  # of the decoder's layers
    ends: int  # of their inputs and outputs, summed: weights of a LoRA of rank 1
    decoder: int
    around: int  # encoder and projector
    audio_tokens: float  # a second

    @property
    def used(self) -> int:
        """Weights that a position is multiplied with."""
        return self.matrices + self.vocabulary * self.hidden


@dataclass(frozen=True)
class HealingEstimate:
    """Bytes by what takes them, and FLOPs of an hour of speech."""

    memory: dict[str, float]
    work: float
    positions_an_hour: float

    @property
    def bytes(self) -> float:
        """Of everything."""
        return sum(self.memory.values())


def shapes_of(name: str | Path) -> Shapes:
    """Of a model named as for `load`; its weights are not read.

    Raises:
        CheckpointError: as `read_facts`.
    """
    facts = read_facts(name)
    folder = resolve(name)
    decoder = decoder_shapes(facts.decoder)
    around = max(0, round(float_bytes(folder) / 4) - decoder.decoder)
    return Shapes(**{**vars(decoder), "around": around, "audio_tokens": _audio_tokens(folder)})


def decoder_shapes(config: PretrainedConfig) -> Shapes:
    """Of a decoder alone."""
    with init_empty_weights():
        decoder = AutoModelForCausalLM.from_config(config)
    decoder.tie_weights()
    text = config.get_text_config()
    linears = [one for one in decoder_view(decoder).layers.modules() if isinstance(one, nn.Linear)]
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shapes(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        queries=width * text.num_attention_heads,
        keys=width * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        vocabulary=text.vocab_size,
        matrices=sum(one.in_features * one.out_features for one in linears),
        ends=sum(one.in_features + one.out_features for one in linears),
        decoder=sum(one.numel() for one in decoder.parameters()),
        around=0,
        audio_tokens=_AUDIO_TOKENS,
    )


def estimate(
    of: Shapes, plan: HealingPlan, *, precision: str, teacher: Shapes | None = None
) -> HealingEstimate:
    """What `plan` takes of a model of these shapes, in "fp32" or "bf16"."""
    width = 2 if precision == "bf16" else 4
    frozen = 0.0
    if plan.base_bits == 4:
        frozen = _NF4 * of.matrices + (2.0 * (of.decoder - of.matrices) if width == 2 else 0.0)
    elif width == 2:
        frozen = 2.0 * (of.decoder if plan.rank else of.decoder - of.matrices)
    trained = float(plan.rank * of.ends if plan.rank else of.matrices) * ("decoder" in plan.parts)
    trained += of.around * bool(
        {"projector", "encoder"} & set(plan.parts)
    )  # at most: their shares are not told apart
    per_second = of.audio_tokens + TEXT_TOKENS + PROMPT_TOKENS / CLIP_SECONDS
    text = plan.micro_positions * TEXT_TOKENS / per_second
    again = 2 if plan.gradient_checkpointing else 0
    a_position = (4 if plan.rank else 6) + again
    hour = 3_600 * per_second
    work = hour * a_position * of.used + (hour * 2 * teacher.used if teacher is not None else 0)
    memory = {
        "weights": 4.0 * (of.decoder + of.around),
        "frozen copies": frozen,
        "teacher": 4.0 * (teacher.decoder + teacher.around) if teacher is not None else 0.0,
        "trained": _TRAINED * trained,
        "activations": activations(of, plan, width),
        "logits": text * of.vocabulary * 16 * (1 if teacher is None else 2),
    }
    return HealingEstimate(memory, work, hour)


def activations(of: Shapes, plan: HealingPlan, width: int, longest: float | None = None) -> float:
    """Bytes that a forward pass keeps for the backward one."""
    longest = CLIP_SECONDS * of.audio_tokens if longest is None else longest
    layer = 8.0 * of.hidden + width * (6 * of.hidden + 3 * of.queries + 6 * of.keys + 4 * of.intermediate)
    layer += 2 * of.heads * longest * width
    if plan.gradient_checkpointing:
        return plan.micro_positions * (width * of.hidden * (of.layers + 1) + layer)
    return plan.micro_positions * of.layers * layer


def render_estimate(of: Shapes, found: HealingEstimate, rate: float, hours: float, plan: HealingPlan) -> str:
    """For a terminal: the formulas, and what they give here.

    Args:
        of: the model.
        found: of it.
        rate: FLOP/s of matrix products.
        hours: of speech that there are.
        plan: of the run.
    """
    speed = SHARE_OF_RATE * rate / found.work  # hours of speech a second
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in found.memory.items() if size)
    lines = [FORMULAS, ""]
    lines.append(f"weights   {(of.decoder + of.around) / 1e9:.2f} billion")
    lines.append(f"memory    {found.bytes / 1e9:.1f} GB: {parts}")
    lines.append(
        f"work      {found.work / 1e12:.1f} TFLOP an hour of speech, {found.positions_an_hour:.0f} positions"
    )
    lines.append(f"rate      {SHARE_OF_RATE:g} x {rate / 1e9:.0f} GFLOP/s")
    lines.append(f"an epoch  {hours / (3_600 * speed):.2f} hours for {hours:.2f} hours of speech")
    if plan.steps is not None:
        took = plan.steps * plan.batch_positions / found.positions_an_hour / (3_600 * speed)
        lines.append(f"{plan.steps} steps  {took:.2f} hours")
    return "\n".join(lines)


def _audio_tokens(folder: Path) -> float:
    """A second of audio's, by the model's configuration."""
    family = find_family(folder)
    try:
        if (folder / "decoder").is_dir():
            spec = SpeechLLMConfig.load(folder).audio
        elif family is not None and family.layout == "stock":
            spec = family.geometry(AutoConfig.from_pretrained(folder, trust_remote_code=False), False).audio
        else:
            return _AUDIO_TOKENS
    except (PrunellaError, OSError, ValueError):
        return _AUDIO_TOKENS
    return spec.sampling_rate / spec.samples_per_token
