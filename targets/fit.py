"""Whether a bundle fits a target's memory, and how fast its decoder can be there at most."""

from __future__ import annotations

from dataclasses import dataclass

from prunella.device_runtime.bundle import Bundle
from prunella.targets.profile import TargetProfile

_RUNTIME_MB = 150  # interpreter, libraries and activations, as measured for the reference on x86


@dataclass(frozen=True)
class Fit:
    """A bundle against a target.

    Attributes:
        weights_mb: of all its files.
        cache_mb: keys and values of a full context, in float32.
        budget_mb: of the target; 0 where it is not limited.
        tokens_per_second: ceiling that the memory's bandwidth sets, every decoder weight being read once a token;
            None where the bandwidth is not known.
    """

    weights_mb: float
    cache_mb: float
    budget_mb: int
    tokens_per_second: float | None

    @property
    def needed_mb(self) -> float:
        """An estimate of the whole process."""
        return self.weights_mb + self.cache_mb + _RUNTIME_MB

    @property
    def fits(self) -> bool:
        """Whether it stays within the budget."""
        return not self.budget_mb or self.needed_mb <= self.budget_mb

    def describe(self) -> str:
        """One line."""
        budget = f", the budget is {self.budget_mb} MB" if self.budget_mb else ""
        ceiling = (
            f"; the memory's bandwidth allows at most {self.tokens_per_second:.0f} tokens/s"
            if self.tokens_per_second
            else ""
        )
        return (
            f"about {self.needed_mb:.0f} MB ({self.weights_mb:.0f} of weights, {self.cache_mb:.0f} of cache, "
            f"{_RUNTIME_MB} of runtime){budget}{ceiling}"
        )


def fit_bundle(target: TargetProfile, bundle: Bundle) -> Fit:
    """Estimate memory and the speed limit of a bundle on a target."""
    spec = bundle.manifest.decoder
    cache = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * spec.max_context * 4
    engine = bundle.manifest.engines[0]
    prefix = "gguf/decoder-" if engine == "gguf" else "onnx/decoder_model_merged"
    decoder = sum(entry.bytes for name, entry in bundle.manifest.files.items() if name.startswith(prefix))
    speed = target.bandwidth.gb_per_s * 1e9 / decoder if target.bandwidth.gb_per_s and decoder else None
    return Fit(bundle.total_bytes / 1e6, cache / 1e6, target.memory.budget_mb, speed)
