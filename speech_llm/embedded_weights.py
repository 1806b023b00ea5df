"""Where the embedded models' weights are: the distribution `prunella-models`, or a checkout's own folder of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from prunella.device_runtime.base.errors import CheckpointError

PACKAGE = "prunella_models"
CHECKOUT = Path(__file__).parents[1] / "embedded_models" / PACKAGE


def find_weights(name: str) -> Path | None:
    """Folder of an embedded model's weights (`reference`, `reference-pruned`), or None where they are not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = [*map(Path, (spec and spec.submodule_search_locations) or ()), CHECKOUT]
    folders = (place / name.replace("-", "_") for place in places)
    return next((folder for folder in folders if folder.is_dir()), None)


def embedded_weights(name: str) -> Path:
    """`find_weights`, where they are needed.

    Raises:
        CheckpointError: neither installed nor in a checkout.
    """
    folder = find_weights(name)
    if folder is None:
        raise CheckpointError(
            f"the weights of '{name}' are not installed: they are the wheel prunella_models of dist/ (`make wheels` in a "
            "checkout of prunella makes it), or run prunella from the checkout itself"
        )
    return folder
