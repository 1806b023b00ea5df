"""Surgery on files: what is left of a decoder that stays on disk is copied, tensor by tensor, without being loaded."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.streaming import LayerStream, source_of, stream_of
from prunella.speech_llm.weight_files import StoredTensor, write_weights

_GENERATION = "generation_config.json"


def write_streamed(
    decoder: PreTrainedModel, folder: Path, *, known: Collection[str] | None = None, config: Any = None
) -> None:
    """Write weights and configurations of a streamed decoder's folder anew, with the layers that are left, in its dtypes.

    Args:
        decoder: as it was cut; weights that were put in the place of stored ones are written instead of those.
        folder: it exists.
        known: names of the tensors that are copied, as they are in the files; by default those of the decoder.
        config: of the model; by default the decoder's.
    """
    stream = cast(LayerStream, stream_of(decoder))
    config = copy.deepcopy(decoder.config if config is None else config)
    config.save_pretrained(folder)
    source = stream.files.folder / _GENERATION
    if source.is_file():
        shutil.copyfile(source, folder / _GENERATION)
    write_weights(folder, _left(decoder, stream, set(stream.names.values() if known is None else known)))


def _left(
    decoder: PreTrainedModel, stream: LayerStream, known: set[str]
) -> Iterator[tuple[str, StoredTensor | torch.Tensor]]:
    """Tensors of the new files in the old one's order."""
    layers = {source_of(layer): (number, layer) for number, layer in enumerate(decoder_view(decoder).layers)}
    of_layer = {}  # of a stored tensor: its layer's prefix, and its name in it
    for name, stored in stream.names.items():
        head, mark, tail = name.partition("layers.")
        number, _, rest = tail.partition(".")
        if mark and number.isdecimal():
            of_layer[stored] = (f"{head}{mark}{number}.", rest, f"layers.{number}.{rest}")
    for stored in stream.files:
        if stored not in known:
            continue
        if stored not in of_layer:
            yield stored, stream.files[stored]
            continue
        prefix, rest, end = of_layer[stored]
        if prefix not in layers:
            continue
        if not stored.endswith(end):
            raise CheckpointError(
                f"'{stored}' of {stream.files.folder} is a layer's under another number: load it whole (--stream off)"
            )
        place, layer = layers[prefix]
        new = f"{stored.removesuffix(end)}layers.{place}.{rest}"
        weight = layer.get_parameter(rest) if rest in dict(layer.named_parameters()) else None
        if weight is None or weight.is_meta:
            yield new, stream.files[stored]
        else:
            yield new, weight.detach().to(stream.files[stored].dtype)
