"""What people are told of a model: how much of it was pruned, how it is stored, how it writes, what may be said to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunella.device_runtime.bundle import BundleManifest

_MOST_PHRASES = 500  # lines of a list that are shown


@dataclass(frozen=True)
class ModelSummary:
    """Of the model behind a server.

    Attributes:
        layers: of its decoder; 0 if not known.
        layers_before: of the decoder that it was pruned from, `layers` where none was pruned.
        quantization: the recipe's name; empty if not known.
        lower_case: it writes lower case without punctuation.
        phrases: all that may be said to it, as templates; none: anything.
    """

    layers: int = 0
    layers_before: int = 0
    quantization: str = ""
    lower_case: bool = False
    phrases: tuple[str, ...] = ()

    @staticmethod
    def of(manifest: BundleManifest, phrases: str = "") -> ModelSummary:
        """Of a bundle, and the text of the list of phrases that it is held to."""
        layers = manifest.decoder.num_layers
        return ModelSummary(
            layers,
            _layers_before(manifest.provenance, layers),
            manifest.recipe,
            manifest.prompt.text_style == "lower",
            _templates(phrases),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "layers": self.layers,
            "layers_before": self.layers_before,
            "quantization": self.quantization,
            "lower_case": self.lower_case,
            "phrases": list(self.phrases),
        }


def _layers_before(provenance: Mapping[str, Any], layers: int) -> int:
    """Provenance is free-form: what is not as `prune` writes it says nothing."""
    cuts = provenance.get("pruning")
    first = cuts[0] if isinstance(cuts, Sequence) and not isinstance(cuts, str) and cuts else None
    before = first.get("layers_before") if isinstance(first, Mapping) else None
    return before if type(before) is int and before > layers else layers


def _templates(text: str) -> tuple[str, ...]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(filter(None, lines))[:_MOST_PHRASES]
