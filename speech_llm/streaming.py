"""Decoders whose weights stay on disk: a layer is read when it runs, and forgotten behind it.

Such a decoder is an ordinary causal LM of transformers whose layers, embeddings and head are empty (on "meta"); hooks fill
what runs. It may be cut and copied as any other (`pruning/surgery.py`), and a weight that was put in the place of an empty
one stays. A forward pass of it reads all weights once, so many batches are carried through together, layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from prunella.device_runtime.base.errors import CheckpointError
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.weight_files import StoredTensor, WeightFiles

if TYPE_CHECKING:
    from prunella.speech_llm.batches import DecoderBatch

_STREAM, _PREFIX = "prunella_stream", "prunella_prefix"
HELD_BYTES = 1 << 30  # of hidden states that are carried together
_LOGITS_AT_ONCE = 512  # positions


class LayerStream:
    """Fills the empty parameters of modules from files. Copies of a decoder share it."""

    def __init__(self, files: WeightFiles, names: Mapping[str, str]) -> None:
        """Of a decoder.

        Args:
            files: that hold the weights.
            names: of the decoder's parameters → of tensors in the files.
        """
        self.files = files
        self.names = dict(names)
        self._held: dict[int, int] = {}
        self._empty: dict[int, dict[str, nn.Parameter]] = {}
        self._last: tuple[str, dict[str, torch.Tensor]] = ("", {})

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerStream:
        return self

    def stored(self, prefix: str) -> dict[str, StoredTensor]:
        """Where the parameters of the module with this prefix lie, by their names in it."""
        own = {name: where for name, where in self.names.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): self.files[where] for name, where in own.items()}

    @property
    def stored_bytes(self) -> int:
        """Of the decoder's weights in the files, tied ones once."""
        return sum(self.files[name].size for name in set(self.names.values()))

    @contextmanager
    def holding(self, module: nn.Module) -> Iterator[None]:
        """Within it `module` is filled, however often it runs."""
        self._held[id(module)] = self._held.get(id(module), 0) + 1
        if self._held[id(module)] == 1:
            self._fill(module)
        try:
            yield
        finally:
            self._held[id(module)] -= 1
            if not self._held[id(module)]:
                del self._held[id(module)]
                _put(module, self._empty.pop(id(module), {}))

    def forget(self) -> None:
        """Let go of the weights that were read last."""
        self._last = ("", {})

    def before(self, module: nn.Module, _: Any) -> None:
        """Hook of layers and heads."""
        if "forward" not in vars(module) and id(module) not in self._held:
            self._fill(module)

    def after(self, module: nn.Module, *_: Any) -> None:
        """Its counterpart."""
        if id(module) not in self._held and id(module) in self._empty:
            _put(module, self._empty.pop(id(module)))

    def look_up(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[torch.Tensor]:
        """Hook of embeddings: of the table only those rows are read that are asked for."""
        wanted, places = torch.unique(args[0], return_inverse=True)
        rows = self.files.rows(self.names[f"{vars(module)[_PREFIX]}weight"], wanted.tolist())
        self._empty[id(module)] = {"weight": cast(nn.Parameter, module.weight)}
        _put(module, {"weight": nn.Parameter(rows, requires_grad=False)})
        return (places,)

    def _fill(self, module: nn.Module) -> None:
        prefix = vars(module)[_PREFIX]
        empty = {name: one for name, one in module.named_parameters() if one.is_meta}
        before: dict[str, torch.Tensor] = {}
        if self._last[0] != prefix:
            # The next layer is read into the last one's memory, where nothing runs on that any more.
            if not self._empty and empty.keys() <= self._last[1].keys():
                before = self._last[1]
            self._last = (prefix, {})
        read = self._last[1]
        for name in empty:
            if name not in read:
                read[name] = self.files.read(self.names[prefix + name], into=before.pop(name, None))
        self._empty[id(module)] = empty
        _put(module, {name: nn.Parameter(read[name], requires_grad=False) for name in empty})


def attach(decoder: PreTrainedModel, stream: LayerStream) -> PreTrainedModel:
    """Make a decoder on "meta" read its weights from files when it runs; what is small is read now.

    Raises:
        CheckpointError: a tensor that is not in the files, or of another shape there.
    """
    view = decoder_view(decoder)
    parts = {
        **{f"{_name(decoder, one)}.": one for one in view.layers},
        f"{_name(decoder, view.head)}.": view.head,
    }
    table = cast(nn.Embedding, view.embeddings)
    table.padding_idx = None  # the table that is looked up in has fewer rows
    for prefix, part in [*parts.items(), (f"{_name(decoder, table)}.", table)]:
        setattr(part, _PREFIX, prefix)
        setattr(part, _STREAM, stream)
    for part in parts.values():
        part.register_forward_pre_hook(stream.before)
        part.register_forward_hook(stream.after, always_call=True)
    table.register_forward_pre_hook(stream.look_up)
    table.register_forward_hook(stream.after, always_call=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    for name, shape in shapes.items():
        where = stream.names.get(name)
        if where is None or stream.files[where].shape != shape:
            raise CheckpointError(
                f"{stream.files.folder} has no tensor of shape {shape} for '{name}' of {type(decoder).__name__}, which cannot "
                "be read layer by layer then: load it whole (--stream off), or save it again with transformers"
            )
    streamed = (*parts, f"{_name(decoder, table)}.")
    small = [name for name in shapes if not name.startswith(streamed)]
    small += [name for name, _ in decoder.named_buffers() if name in shapes]
    for name in small:
        _put(decoder, {name: nn.Parameter(stream.files.read(stream.names[name]), requires_grad=False)})
    return decoder


def stream_of(decoder: PreTrainedModel) -> LayerStream | None:
    """What fills a decoder's layers; None: it is whole."""
    found: LayerStream | None = vars(decoder_view(decoder).embeddings).get(_STREAM)
    return found


def source_of(module: nn.Module) -> str:
    """How the names of a streamed layer's (head's, table's) parameters begin in the decoder as it was read."""
    return str(vars(module)[_PREFIX])


def in_groups(batches: Iterable[DecoderBatch], states: int) -> Iterator[list[DecoderBatch]]:
    """Batches that are carried through the layers together: of each, `states` hidden states are held."""
    group: list[DecoderBatch] = []
    held = 0
    for batch in batches:
        size = batch.inputs_embeds.numel() * 4 * states
        if group and held + size > HELD_BYTES:
            yield group
            group, held = [], 0
        group.append(batch)
        held += size
    if group:
        yield group


def layer_by_layer(
    decoder: PreTrainedModel, group: Sequence[DecoderBatch], until: int
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Carry batches through a streamed decoder, each layer being read once.

    Yields:
        (number of the hidden state, number of the batch, the state (batch, length, hidden)); state 0 comes first, `until` last.
    """
    stream = cast(LayerStream, stream_of(decoder))
    walks = [_Walk(decoder, batch) for batch in group]
    for index, walk in enumerate(walks):
        yield 0, index, walk.state
    for number, layer in enumerate(decoder_view(decoder).layers):
        if number >= until:
            break
        with stream.holding(layer):
            for index, walk in enumerate(walks):
                walk.state = walk.through(number, walk.state)
                yield number + 1, index, walk.state
    stream.forget()


def last_states(
    decoders: Sequence[PreTrainedModel], group: Sequence[DecoderBatch]
) -> list[list[torch.Tensor]]:
    """What each of several cuts of one streamed decoder makes of each batch, behind the final norm.

    They go through the layers together: a layer is read once for all of them, and runs once for those that agree so far.
    """
    stream = cast(LayerStream, stream_of(decoders[0]))
    walks = [[_Walk(decoder, batch) for batch in group] for decoder in decoders]
    layers = [list(decoder_view(decoder).layers) for decoder in decoders]
    order = {name: place for place, name in enumerate(_in_order(stream.names))}
    paths: list[tuple[Any, ...]] = [()] * len(decoders)
    states = {(): [walk.state for walk in walks[0]]}
    while any(len(path) < len(own) for path, own in zip(paths, layers, strict=True)):
        waiting = [one for one, path in enumerate(paths) if len(path) < len(layers[one])]
        source = min((source_of(layers[one][len(paths[one])]) for one in waiting), key=order.__getitem__)
        for one in waiting:
            number = len(paths[one])
            layer = layers[one][number]
            if source_of(layer) != source:
                continue
            path = (*paths[one], (source, *(id(each) for each in layer.parameters() if not each.is_meta)))
            if path not in states:
                with stream.holding(layer):
                    before = states[paths[one]]
                    states[path] = [
                        walk.through(number, state) for walk, state in zip(walks[one], before, strict=True)
                    ]
            paths[one] = path
        states = {path: state for path, state in states.items() if path in paths}
    stream.forget()
    return [
        [walk.behind_the_norm(state) for walk, state in zip(walks[one], states[path], strict=True)]
        for one, path in enumerate(paths)
    ]


def streamed_logits(decoder: PreTrainedModel, rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """(n, hidden) behind the final norm → logits (at most 512, vocabulary) float32, piece by piece."""
    view = decoder_view(decoder)
    stream = cast(LayerStream, stream_of(decoder))
    with stream.holding(view.head):
        for start in range(0, len(rows), _LOGITS_AT_ONCE):
            yield view.logits(rows[start : start + _LOGITS_AT_ONCE]).float()
    # What was read of the head stays until a layer is read: the next decoder has the same one.


class _Walk:
    """One batch on its way through one decoder: its state, and what the body gives each layer besides."""

    def __init__(self, decoder: PreTrainedModel, batch: DecoderBatch) -> None:
        self.batch = batch
        self.view = decoder_view(decoder)
        self._given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(*args: Any, **kwargs: Any) -> torch.Tensor:
            state: torch.Tensor = args[0] if args else kwargs.pop("hidden_states")
            self._given.append((args[1:], kwargs))
            self.state = state
            return state

        self._run(note)

    def through(self, number: int, state: torch.Tensor) -> torch.Tensor:
        """A state behind layer `number`."""
        args, kwargs = self._given[number]
        output = self.view.layers[number](state, *args, **kwargs)
        made: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return made

    def behind_the_norm(self, state: torch.Tensor) -> torch.Tensor:
        """The last state as the head takes it."""
        return self._run(lambda *args, **kwargs: state)

    def _run(self, layer: Any) -> torch.Tensor:
        """The body's own forward with this in the place of every layer's."""
        with ExitStack() as stack:
            for one in self.view.layers:
                vars(one)["forward"] = layer
                stack.callback(vars(one).pop, "forward")
            return self.view.run(self.batch.inputs_embeds, self.batch.attention_mask)


def _in_order(names: Iterable[str]) -> list[str]:
    """Prefixes of layers, by their numbers."""
    found = {}
    for name in names:
        head, mark, tail = name.partition(".layers.")
        if mark:
            number = tail.split(".", 1)[0]
            found[f"{head}{mark}{number}."] = int(number)
    return sorted(found, key=found.__getitem__)


def _name(decoder: nn.Module, part: nn.Module) -> str:
    found: str = next(name for name, module in decoder.named_modules() if module is part)
    return found


def _put(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._buffers:  # noqa: SLF001 - no public way to put a tensor without copying
            owner._buffers[leaf] = parameter.data  # noqa: SLF001
        else:
            owner._parameters[leaf] = parameter  # noqa: SLF001
