"""One sitting of a healing run: a model is prepared for training, trained, and made an ordinary model again."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.languages import primary_language
from prunella.healing.adapters import TrainableDecoder, lora_layers
from prunella.healing.clips import Clip, TokenClip, tokenize
from prunella.healing.dev_set import DevSet
from prunella.healing.features import FeatureStore, module_digest
from prunella.healing.learner import Learner
from prunella.healing.plan import Augmentation, HealingError, HealingPlan, fingerprint
from prunella.healing.run_state import RunState, read_state, unshard
from prunella.healing.trainer import Trainer, TrainingJob, make_accelerator
from prunella.healing.training_speed import CompiledLayers, choose_attention, choose_compile, choose_precision
from prunella.speech_llm.ctc_head import alphabet_of, letters_of
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.stock import hear_true_length


class HealingRun:
    """`prepare`, `train`, and `finish`, that also where training failed.

    Args:
        model: trained in place.
        plan: what is trained, how, and until when.
        speech: clips to learn from.
        dev: clips that choose the best checkpoint.
        teacher: the model before it was pruned.
        work: folder of the run's checkpoints; a run found there goes on.
        cache: folder of the features; by default in `work`.

    Raises:
        HealingError: `work` holds another run.
        ManifestError: no clip can be used.
    """

    def __init__(
        self,
        model: SpeechLLM,
        plan: HealingPlan,
        speech: Sequence[Clip],
        *,
        dev: Sequence[Clip] = (),
        teacher: SpeechLLM | None = None,
        work: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        self.model, self.plan, self.teacher, self.work = model, plan, teacher, work
        self.accelerator = make_accelerator()
        if plan.trim_audio:
            hear_true_length(model)
        _settle_ctc_head(model, plan, speech)
        self.clips = tokenize(model, speech, plan.stage, slowest=plan.augmentation.speed)
        self.dev_clips = tokenize(model, dev, plan.stage) if dev else []
        self.state = _open_state(model, plan, teacher, self.clips, work)
        if not self.state.precision:
            # By the main process: machines of a cluster may measure differently. A resumed run keeps what it began with.
            chosen = choose_precision(plan.precision, self.accelerator.device)
            self.state.precision = broadcast_object_list([chosen])[0]
        self._cache = cache if cache is not None else (work / "features" if work is not None else None)
        self._store = self._features(self.clips, plan.augmentation, precision=self.state.precision)
        self._dev_set: DevSet | None = None
        if self.dev_clips:
            still = self._features(self.dev_clips, Augmentation.none())
            self._dev_set = DevSet(model, still, plan.micro_positions)
        self._decoder: TrainableDecoder | None = None
        self._compiled: CompiledLayers | None = None
        self._learner: Learner | None = None

    def prepare(self) -> None:
        """Freeze what is not trained, add the LoRA, choose what is fast here, and move the models to the device.

        Raises:
            UsageError: layers that the model has not.
        """
        model, plan = self.model, self.plan
        layers = lora_layers(plan.lora, model) if "decoder" in plan.parts else []
        model.requires_grad_(False)
        model.projector.requires_grad_("projector" in plan.parts)
        model.audio_encoder.requires_grad_("encoder" in plan.parts)
        for name, part in model.audio_encoder.named_modules():
            if name.endswith("embed_positions"):  # Whisper's sinusoids, which it never trained
                part.requires_grad_(False)
        if model.ctc_head is not None:
            model.ctc_head.requires_grad_(plan.stage == "ctc-head")
        if plan.with_decoder:
            self._prepare_decoder(layers)
        for module in (model, self.teacher):
            if module is not None:
                module.to(self.accelerator.device)
        # Under autocast the projector's norms see bf16 with float32 weights: slower than fused, and meant.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")

    def train(self, *, progress: bool = False, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train until the plan ends, then put the best weights into the model.

        Raises:
            HealingError: the loss was not finite, or a checkpoint could not be written.
            UsageError: the teacher does not fit the model.
        """
        self._learner = Learner(
            self.model,
            self.plan,
            vocabulary=self._vocabulary(),
            teacher=self.teacher,
            precision=self.state.precision,
            compiled=self._compiled,
        )
        job = TrainingJob(
            self.plan,
            self._store,
            self._dev_set,
            self.work,
            progress=progress,
            on_step=on_step,
            rounded=self._decoder.rounded if self._decoder is not None else None,
        )
        self.state = Trainer(self.accelerator, self._learner, job, self.state).run()

    def finish(self) -> None:
        """Make the model an ordinary one again, its LoRA merged, on the CPU; every process has to call this."""
        if self._learner is not None and self.accelerator.distributed_type == DistributedType.FSDP:
            unshard(self._learner)
        self.accelerator.free_memory()
        self.model.to("cpu")
        if self._decoder is not None:
            if self.plan.gradient_checkpointing:
                self.model.decoder.gradient_checkpointing_disable()
                self.model.decoder.disable_input_require_grads()  # which enabling switched on
            if self.work is not None and self.accelerator.is_main_process:
                with contextlib.suppress(OSError):
                    self._decoder.save_adapter(self.work / "adapter")
            self._decoder.merge()
        self.model.requires_grad_(False).eval()

    def record(self) -> dict[str, Any]:
        """What `provenance["healing"]` says about the run."""
        plan, state = self.plan, self.state
        hours = sum(one.clip.seconds for one in self.clips) / 3600
        return {
            "stage": plan.stage, "train": list(plan.parts), "lora": plan.lora, "rank": plan.rank, "steps": state.step,
            "minutes": round(state.seconds / 60, 2), "hours_of_speech": round(hours, 3), "precision": state.precision,
            "dev_wer": state.best_wer, "best_step": state.best_step if state.best_wer is not None else state.step,
            "seed": plan.seed, "run": state.fingerprint, **({"trim_audio": True} if plan.trim_audio else {}),
            **({"rounding": plan.rounding} if plan.rounding else {}),
        }  # fmt: skip

    def _prepare_decoder(self, layers: Sequence[int]) -> None:
        decoder, plan, device = self.model.decoder, self.plan, self.accelerator.device
        whole = (
            self.accelerator.distributed_type == DistributedType.FSDP
        )  # which wants parameters of one dtype
        self._decoder = TrainableDecoder(decoder, layers, plan, "fp32" if whole else self.state.precision)
        decoder.set_attn_implementation(choose_attention(decoder, plan, device))
        if choose_compile(plan, self.state.precision, device) and not whole:
            self._compiled = CompiledLayers(self.model.layers)
        if plan.gradient_checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})

    def _features(
        self, clips: Sequence[TokenClip], augmentation: Augmentation, *, precision: str = "fp32"
    ) -> FeatureStore:
        return FeatureStore(
            self.model,
            clips,
            augmentation,
            self.plan.seed,
            encode="encoder" not in self.plan.parts,
            precision=precision,
            folder=self._cache,
        )

    def _vocabulary(self) -> Sequence[int]:
        """Token ids that a CTC loss tells apart: those of the texts, without their end tokens."""
        if not self.plan.needs_alignment:
            return ()
        clips = [*self.clips, *self.dev_clips]
        return sorted({token for one in clips for token in one.said})


def _settle_ctc_head(model: SpeechLLM, plan: HealingPlan, speech: Sequence[Clip]) -> None:
    """Drop a head that will not fit the trained encoder; add one where it is what is trained.

    Raises:
        UsageError: the model has a head with other letters.
    """
    if "encoder" in plan.parts and model.ctc_head is not None:
        model.remove_ctc_head()
        sys.stderr.write(
            "the CTC head knew the encoder as it was: left out; train another with --stage ctc-head\n"
        )
    if plan.stage == "ctc-head" and (plan.new_ctc_head or model.ctc_head is None):
        torch.manual_seed(plan.seed)
        model.add_ctc_head(alphabet_of(plan.alphabet) if plan.alphabet else _alphabet(speech))
    elif plan.alphabet and alphabet_of(plan.alphabet) != model.config.ctc_alphabet:
        raise UsageError(
            f"the model has a CTC head with the letters {model.config.ctc_alphabet!r}: leave --alphabet out, or begin anew "
            "with --new-ctc-head"
        )


def _alphabet(speech: Sequence[Clip]) -> str:
    """English letters, and those of clips in other languages."""
    return letters_of(clip.text for clip in speech if primary_language(clip.language) not in ("", "en"))


def _open_state(
    model: SpeechLLM,
    plan: HealingPlan,
    teacher: SpeechLLM | None,
    clips: Sequence[TokenClip],
    work: Path | None,
) -> RunState:
    """Where the run in `work` is, or the beginning of a new one."""
    identity = plan.identity()
    digest = [module_digest(model.projector), module_digest(model.audio_encoder), module_digest(model.layers)]
    if teacher is not None:
        digest += [module_digest(teacher.projector), module_digest(teacher.layers)]
    facts = [(one.clip.key, one.tokens) for one in clips]
    state = read_state(work) if work is not None else None
    if state is None:
        return RunState(fingerprint=fingerprint(identity, digest, facts), identity=identity)
    # A setting that this prunella knows and the one that began the run did not had its default then.
    defaults = HealingPlan(steps=1).identity()
    changed = [key for key, value in identity.items() if state.identity.get(key, defaults[key]) != value]
    if changed or state.fingerprint != fingerprint(state.identity, digest, facts):
        what = (
            f"other settings ({', '.join(changed)})"
            if changed
            else "another model, another teacher or other speech"
        )
        raise HealingError(
            f"{work} holds a run with {what}: remove it to begin anew, or write to another folder"
        )
    # It may have been given more time since.
    state.finished = 0 < plan.patience <= state.bad_evaluations
    return state
