"""What the trained part of the model hears: encoder frames (frozen encoder) or log-mel, varied, cached on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.healing.augment import (
    LONGEST_SECONDS,
    Variation,
    noise_clip,
    noise_seconds,
    time_masks,
    variation,
    vary,
)
from prunella.healing.clips import TokenClip
from prunella.healing.order import Lengths
from prunella.healing.pass_inputs import PassClip
from prunella.healing.plan import Augmentation, fingerprint
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.torch_engine import model_features

CLEAN = -1  # the variant that evaluation hears
KEEP_FREE = 2 << 30  # bytes of disk that the cache leaves to others
_LOOK_EVERY = 64


@dataclass(frozen=True)
class Loaded:
    """Rows of a clip, time first, of which the first `valid` are audio's: float16 as they are cached, or log-mel float32."""

    rows: torch.Tensor
    valid: int


class FeatureStore:
    """Features of the training clips and of the noise-only clips behind them, by (clip, variant).

    Frozen encoder: (encoder_frames, width), all of them audio's; trained encoder: (frames, num_mel_bins). Both float16, time
    first.
    What is not cached yet is computed; when the disk gets full, caching stops and training goes on.

    Args:
        model: whose features they are.
        clips: the training clips.
        augmentation: how they are varied.
        seed: of the variations.
        encode: whether to cache encoder frames.
        precision: "bf16" runs the encoder's products in it, but for clean clips, which are for evaluation.
        folder: of the cache; None: compute always.
    """

    def __init__(
        self,
        model: SpeechLLM,
        clips: Sequence[TokenClip],
        augmentation: Augmentation,
        seed: int,
        *,
        encode: bool,
        precision: str = "fp32",
        folder: Path | None = None,
    ) -> None:
        self.model, self.clips, self.augmentation, self.seed, self.encode = (
            model,
            clips,
            augmentation,
            seed,
            encode,
        )
        self._precision = precision
        noise = augmentation.noise_only
        self.noise_clips = max(1, round(len(clips) * noise)) if noise > 0 else 0
        weights = module_digest(model.audio_encoder) if encode else ""
        self._facts = (
            asdict(model.config.audio.features),
            model.config.family,
            weights,
            augmentation,
            seed,
        )
        self._folder = folder
        self._writes = 0
        # The whole model pads to stacks and then some: what is longer than this would not fit into 30 s.
        self._longest = LONGEST_SECONDS - model.config.audio.features.extra / SAMPLE_RATE
        # What is said where nobody speaks.
        silence = model.tokenizer(model.answer(""), add_special_tokens=False)["input_ids"]
        self._nothing = (*silence, model.prompt.eos_ids[0])

    def __len__(self) -> int:
        return len(self.clips) + self.noise_clips

    def tokens(self, index: int) -> tuple[int, ...]:
        """Token ids to be learned, ending with the end token."""
        return self.clips[index].tokens if index < len(self.clips) else self._nothing

    def said(self, index: int) -> tuple[int, ...]:
        """What is said in the audio, in tokens or letters."""
        return self.clips[index].said if index < len(self.clips) else ()

    def pass_clip(self, index: int, loaded: Loaded, weight: float = 1.0) -> PassClip:
        """A clip for a forward pass, of what `finish` gave."""
        facts = (self.tokens(index), self.said(index), self.language(index), weight)
        return PassClip(loaded.rows, loaded.valid, *facts)

    def language(self, index: int) -> str:
        """Of the clip, "" where nobody knows."""
        return self.clips[index].clip.language if index < len(self.clips) else ""

    def seconds(self, index: int, variant: int) -> float:
        """Seconds of audio after the variation."""
        if index >= len(self.clips):
            return noise_seconds(self.seed, index)
        return self._variation(index, variant).seconds(self.clips[index].clip.seconds)

    def variant(self, index: int, epoch: int) -> int:
        """Which variant an epoch hears: all in turn, beginning anywhere, so that an epoch has some of each."""
        return (index * 7 + epoch) % self.augmentation.variants

    def positions(self, epoch: int) -> Lengths:
        """(clips,) decoder positions of every clip in this epoch, known before any audio is read."""
        languages = {self.language(index) for index in range(len(self))}
        prompts = {language: self.model.prompt_for(language) for language in languages}
        config = self.model.config
        features = config.audio.features
        rows = []
        for index in range(len(self)):
            samples = int(np.ceil(self.seconds(index, self.variant(index, epoch)) * SAMPLE_RATE))
            audio = config.audio_tokens(config.encoder_frames(features.valid_frames(samples)))
            rows.append(prompts[self.language(index)].positions(audio) + len(self.tokens(index)))
        return np.array(rows, np.int64)

    def load(self, index: int, variant: int) -> Loaded:
        """What the cache holds, else log-mel (mel_frames, num_mel_bins) float32 that `finish` turns into it.

        Raises:
            AudioError: the recording cannot be read.
        """
        path = self._path(index, variant)
        if path is not None:
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, SafetensorError):
                pass  # not there yet, or cut off by a crash: it is made again
        heard, valid = model_features(self.model, self._samples(index, variant))
        return Loaded(heard.T, valid)

    def blank(self) -> Loaded:
        """Features of nothing, in place of a recording that cannot be read."""
        config = self.model.config
        if self.encode:
            return Loaded(torch.zeros(config.frames_per_token, config.encoder_width), config.frames_per_token)
        heard, valid = model_features(self.model, np.zeros(config.audio.samples_per_token, np.float32))
        return Loaded(heard.T, valid)

    @torch.no_grad()
    def finish(self, loaded: Loaded, index: int, variant: int) -> Loaded:
        """Complete what `load` gave, and cache it."""
        result, valid = loaded.rows, loaded.valid
        if result.dtype == torch.float16:
            return loaded
        if self.encode:
            encoder = self.model.audio_encoder
            device = next(encoder.parameters()).device
            fast = self._precision == "bf16" and variant != CLEAN
            with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                padded = torch.tensor([valid], device=device) if valid < len(result) else None
                encoded = encoder(result.T[None].to(device), padded)[0]
            valid = self.model.config.encoder_frames(valid)
            result = encoded[:valid].cpu()
        # Row by row, as it comes back from the cache: means round by the order in memory.
        done = Loaded(result.to(torch.float16).contiguous(), valid)
        self._write(self._path(index, variant), done)
        return done

    def masked(self, features: torch.Tensor, index: int, epoch: int) -> torch.Tensor:
        """A copy with spans of time hidden; which ones depends on the epoch and the clip."""
        rng = np.random.default_rng((self.seed, epoch, index, 5))
        features = features.float()
        rate = SAMPLE_RATE / self.model.config.samples_per_frame if self.encode else 100.0
        spans = time_masks(len(features), rate, self.augmentation.masks, rng)
        fill = features.mean() if not self.encode else 0.0
        for span in spans:
            features[span] = fill
        if spans and not self.encode:
            low = int(rng.integers(features.shape[1]))
            features[:, low : low + int(rng.integers(1, 14))] = fill
        return features

    def _samples(self, index: int, variant: int) -> Float32:
        if index >= len(self.clips):
            return noise_clip(self.seed, index)
        samples = self.clips[index].clip.read()
        if variant == CLEAN:
            return samples
        return vary(samples, self._variation(index, variant))[: int(self._longest * SAMPLE_RATE)]

    def _variation(self, index: int, variant: int) -> Variation:
        seconds = self.clips[index].clip.seconds
        return variation(self.augmentation, self.seed, index, variant, seconds, self._longest)

    def _path(self, index: int, variant: int) -> Path | None:
        if self._folder is None:
            return None
        key = self.clips[index].clip.key if index < len(self.clips) else "noise"
        # A clean clip is the same whatever the augmentation.
        facts = self._facts if variant != CLEAN else self._facts[:3]
        name = fingerprint(facts, key, None if variant == CLEAN else index, variant)
        return self._folder / name[:2] / f"{name}.safetensors"

    def _write(self, path: Path | None, done: Loaded) -> None:
        if path is None or self._folder is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writes += 1
            if self._writes % _LOOK_EVERY == 1 and shutil.disk_usage(self._folder).free < KEEP_FREE:
                raise OSError("less than 2 GB of disk are free")
            # Not fsynced as other files are: a torn one is noticed and made again.
            handle, name = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(save({"rows": done.rows, "valid": torch.tensor(done.valid)}))
                Path(name).replace(path)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            sys.stderr.write(
                f"features are no longer cached in {self._folder} ({error}): epochs will be slower\n"
            )
            self._folder = None


def _read(path: Path) -> Loaded:
    # safetensors, not npy: numpy reads an npy header with `ast`, which CPython 3.11 cannot do in two threads at once.
    found = load(path.read_bytes())
    # Into memory that begins where torch's own does: sums round by where it begins, and a run that goes on would say others.
    return Loaded(found["rows"].clone(), int(found["valid"]))


def module_digest(module: torch.nn.Module) -> str:
    """Hash of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
