"""What an output may replace: nothing, an empty folder, or what prunella made itself. Everything else is refused in words."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.readers import HIDDEN

_SYSTEM = ("lost+found", ".DS_Store", "Thumbs.db", "desktop.ini")  # put there by nobody
_BUNDLE = "bundle.json"
_GRAPHS = ("audio_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx")
_BUNDLE_FILES = (  # also where a damaged manifest does not list them
    *(f"onnx/{graph}{data}" for graph in _GRAPHS for data in ("", "_data", ".data")),
    *("gguf/decoder-*.gguf", "gguf/mmproj-*.gguf", "gguf/importance.gguf", "tokenizer.json", _BUNDLE),
)
# A folder that has all the names of one line was written by prunella: checkpoints, training states, reference weights.
_MADE = (
    ("pruning.json", "config.json"),
    ("projector.safetensors", "config.json"),
    ("prunella.json", "config.json"),
    ("projector.safetensors", "reference.json"),
    ("trainable.safetensors", "state.json"),
)
_DECODER = "decoder/"  # the only folder inside one
_CHECKPOINT_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "pruning.json", "state.json"),
    *("reference.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("vocab.txt", "tokenizer*.json", "tokenizer.model", "spiece.model", "*preprocessor_config.json"),
    *(
        "prunella.json",
        "LICENSE*",
        "NOTICE*",
        "sentencepiece.bpe.model",
        "tekken.json",
        "additional_chat_templates/*.jinja",
    ),
    *("processor_config.json", "chat_template.*", "model*.safetensors", "model.safetensors.index.json"),
    *("audio_encoder.safetensors", "projector.safetensors", "ctc_head.safetensors"),
    *("trainable.safetensors", "optimizer.safetensors"),
    *("adapter_model.safetensors", "whole_matrices.safetensors"),
)


def output_path(path: str | Path) -> Path:
    """Where an output really lies: absolute, links followed.

    Raises:
        UsageError: no name at all.
    """
    if not str(path).strip():
        raise UsageError("the output has no name: name a folder with -o")
    if "\0" in str(path):
        raise UsageError(f"{str(path)!a} is no name of a file: choose another with -o")
    return Path(os.path.realpath(path))


def check_name(path: str | Path) -> None:
    """Models are written by libraries that take names in UTF-8 alone.

    Raises:
        UsageError: the whole path is none.
    """
    try:
        str(output_path(path)).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{str(path)!a} is no name in UTF-8, and a model can be written to no other: choose another folder with -o"
        ) from error


def check_output(
    path: str | Path, *, inputs: Iterable[str | Path | None] = (), replaces: bool = True
) -> Path:
    """See before the work whether a folder may be written; nothing of what is there is changed, and nothing stays.

    Args:
        path: of the output folder, as the user gave it.
        inputs: files and folders that are read; names that are no local path are passed over.
        replaces: the folder is written anew; otherwise files are added to it.

    Returns:
        The same place, absolute and with links followed.

    Raises:
        UsageError: a file, an input, a folder with things that prunella did not make, or one that cannot be written.
    """
    target = output_path(path)
    if replaces:
        check_name(path)
    try:
        _check_inputs(path, target, inputs, replaces)
        there = _nearest(target)
        if _is_no_folder(there):
            raise UsageError(
                f"{path} is a file, and the output is a folder: choose another name with -o"
                if there == target
                else f"{there} is a file: {path} cannot be made below it; choose another folder with -o"
            )
        if replaces and there == target:
            found = foreign(target)
            if found is not None:
                raise UsageError(
                    f"{path} holds {found}, which prunella did not make: "
                    "choose another folder with -o, or empty that one"
                )
        _probe(there, "folder with -o")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror or error}): choose another folder with -o"
        ) from error
    return target


def check_output_file(path: str | Path, what: str, ours: Callable[[Path], bool]) -> Path:
    """The same for a file: one that is there stays, but for what `ours` knows as made by prunella, and empty ones.

    Args:
        path: as the user gave it.
        what: it is, for the message.
        ours: asked of what is there.

    Raises:
        UsageError: a folder, a file that is not ours, no name, or a place that cannot be written.
    """
    target = output_path(path)
    try:
        there = _nearest(target)
        if there != target:
            if _is_no_folder(there):
                raise UsageError(f"{there} is a file: {path} cannot be made below it; choose another name")
            _probe(there, "name")
        elif target.is_dir():
            raise UsageError(f"{path} is a folder, and a {what} is a file: choose another name")
        elif not (target.is_file() and not target.stat().st_size) and not ours(target):
            raise UsageError(
                f"{path} is no {what} that prunella wrote, and is not replaced: choose another name"
            )
        elif not os.access(target, os.W_OK):
            raise UsageError(f"{path} cannot be written: choose another name, or change its permissions")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror or error}): choose another name"
        ) from error
    return target


def _check_inputs(
    path: str | Path, target: Path, inputs: Iterable[str | Path | None], replaces: bool
) -> None:
    for given in inputs:
        source = Path(os.path.realpath(given)) if given is not None and os.path.exists(given) else None  # noqa: PTH110
        if source is None:
            continue
        if source == target or _same(source, target):
            raise UsageError(f"the output {path} is the input {given} itself: choose another folder with -o")
        if replaces and target in source.parents and not _ours(source.relative_to(target).as_posix()):
            raise UsageError(
                f"the output {path} would replace the input {given}: choose another folder with -o"
            )
        if replaces and source.is_dir() and any(_same(source, folder) for folder in target.parents):
            raise UsageError(
                f"the output {path} would lie inside the input {given}: choose another folder with -o"
            )


def _nearest(target: Path) -> Path:
    """The output itself if it is there, else the nearest folder above it that is."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        target.stat()  # raises what `exists` hides: loops of links, names that are too long
    return next(one for one in (target, *target.parents) if one.exists())


def check_space(path: str | Path, needed: float) -> None:
    """Refuse work whose output cannot fit on its disk, before it begins.

    Args:
        path: of the output.
        needed: bytes that it takes at least.

    Raises:
        UsageError: fewer are free.
    """
    target = output_path(path)
    there = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UsageError(
            f"the output will take at least {_size(needed)}, and {_size(free)} are free on its disk: free some space, or "
            "choose another folder with -o"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _is_no_folder(path: Path) -> bool:
    # One look, not `exists` and `is_dir`: another writer may be replacing it.
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _probe(folder: Path, choose: str) -> None:
    """Whether anything can be made in a folder. Permission bits do not say: of Windows, network disks, /proc, and for root."""
    try:
        seen = folder.stat()
        probe = folder / f"{HIDDEN}probe"  # one name, so that one which a kill left goes with the next
        try:
            with contextlib.suppress(FileExistsError):  # of another process that looks at the same moment
                probe.mkdir()
            with contextlib.suppress(FileNotFoundError):
                probe.rmdir()
        except OSError as error:
            if error.errno != errno.ENOENT or os.path.samestat(seen, folder.stat()):
                raise UsageError(
                    f"{folder} cannot be written ({error.strerror or error}): "
                    f"choose another {choose}, or change its permissions"
                ) from error
    except FileNotFoundError:  # another writer is replacing it at this moment
        return


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return one.samefile(other)
    return False


def contents(folder: Path) -> list[Path]:
    """What lies in a folder, but for what the system and our own unfinished work put there."""
    return sorted(
        entry for entry in folder.iterdir() if entry.name not in _SYSTEM and not entry.name.startswith(HIDDEN)
    )


def foreign(folder: Path) -> str | None:
    """The first thing in a folder that prunella did not write there; None: all of it may be replaced."""
    while True:
        try:
            seen = folder.stat()
            found = _foreign(folder)
            if found is None or os.path.samestat(seen, folder.stat()):
                return found
        except FileNotFoundError:  # another writer is replacing it at this moment: look again
            if not folder.exists():
                return None


def _foreign(folder: Path) -> str | None:
    entries = contents(folder)
    names = {entry.name for entry in entries}
    if _BUNDLE in names:
        known = _listed(folder / _BUNDLE)
        if known is None:
            return _BUNDLE
        listed = known
        return _first(folder, lambda name: name in listed or _any(name, _BUNDLE_FILES))
    if any(names.issuperset(made) for made in _MADE):
        return _first(folder, lambda name: _any(name.removeprefix(_DECODER), _CHECKPOINT_FILES))
    return entries[0].name if entries else None


def _first(folder: Path, known: Callable[[str], bool]) -> str | None:
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
    return next((name for name in names if not (known(name) or _ours(name))), None)


def _ours(name: str) -> bool:
    return name.startswith(HIDDEN) or name.rpartition("/")[2] in _SYSTEM


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _listed(manifest: Path) -> set[str] | None:
    """The files that a bundle's manifest names; None: it is none of ours, or too damaged to say."""
    try:
        body = json.loads(manifest.read_bytes())
        return set(body["files"]) if "manifest_sha256" in body and isinstance(body["files"], dict) else None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
