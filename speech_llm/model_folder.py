"""What is wrong with a model folder, in words: what libraries say of it is a traceback, a prompt, or nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from prunella.device_runtime.base.errors import CheckpointError
from prunella.quantize.free_memory import whole_memory
from prunella.speech_llm.not_here import why_not
from prunella.speech_llm.tokenizer_surgery import is_cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Other loaders want them: llama.cpp's converter the tokenizer as it was trained, speech LLMs their features. `outputs` knows all.
_VOCABULARIES = (
    *("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"),
    "tekken.json",
)
SIDE_FILES = (
    *_VOCABULARIES,
    *("special_tokens_map.json", "*preprocessor_config.json", "processor_config.json", "chat_template.*"),
    *("additional_chat_templates/*.jinja", "LICENSE*", "NOTICE*"),
)
_LFS = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1_024  # the specification's limit
_LONGEST_HEADER = 100_000_000  # safetensors' own
_WEIGHTS = ("*.safetensors", "*.bin")


def check_model_folder(folder: Path) -> None:
    """Refuse what no loader can make a model of, before one tries.

    Raises:
        CheckpointError: a LoRA adapter, a git-lfs pointer, weights that are quantised already, a bundle, a folder of models.
    """
    adapter = _read_json(folder / "adapter_config.json")
    if adapter and not _weights(folder):
        base = adapter.get("base_model_name_or_path") or "a model that it does not name"
        kind = (
            "LoRA adapter"
            if adapter.get("peft_type") in (None, "LORA")
            else f"{adapter['peft_type']} adapter"
        )
        raise CheckpointError(
            f"{folder} is a {kind} of {base}, not a model: merge it first "
            "(peft: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder), and its tokenizer)"
        )
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.is_file() and path.stat().st_size <= _POINTER_BYTES and path.read_bytes().startswith(_LFS):
            raise CheckpointError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in {folder}"
            )
    if not (folder / "config.json").exists():
        _check_is_no_other_folder(folder)
    quantized = _read_json(folder / "config.json").get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise CheckpointError(
            f"{folder} is quantised already ({method or 'by an unnamed method'}): prunella starts from float weights, "
            "take the model that it was made of"
        )


def _check_is_no_other_folder(folder: Path) -> None:
    if (folder / "bundle.json").is_file():
        raise CheckpointError(
            f"{folder} is a bundle, from which no model can be made again: give the model that it was exported from "
            "(`prunella quantize` makes other bundles of a float one)"
        )
    within = sorted(
        str(found.parent) for found in folder.glob("*/config.json") if found.parent.name != "decoder"
    )
    if within:
        raise CheckpointError(f"{folder} is no model, but holds some: name one of {', '.join(within)}")


def check_memory(folder: Path) -> None:
    """Refuse a model that is larger in float32 than all the memory here: loading it ends in a process that was killed.

    Raises:
        CheckpointError: it is.
    """
    needed = float_bytes(folder)
    memory = whole_memory()
    if needed > memory:
        raise CheckpointError(
            f"{folder} takes {needed / 1e9:.1f} GB of memory in float32, in which prunella works, and this machine or "
            f"container has {memory / 1e9:.1f} GB: take one with more, or cut layers first (`prunella prune` reads them one by one)"
        )


def float_bytes(folder: Path) -> int:
    """Of the weights in a folder and the folders in it, in float32, by the headers of their safetensors files."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]
    once = [
        path for path in files if not path.name.startswith("consolidated")
    ]  # Mistral's layout of the same weights
    return 4 * sum(map(_numbers, once or files))


def _numbers(path: Path) -> int:
    """In a safetensors file, by its header; 0 where that is damaged, which its reader says."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                return 0
            header = json.loads(file.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, struct.error, TypeError, KeyError, AttributeError):
        return 0


def check_is_text(folder: Path) -> None:
    """Refuse a speech model that prunella does not take: as a text LLM it would be cut without one second of audio.

    Raises:
        CheckpointError: its configuration speaks of audio; the message says what it is.
    """
    reason = why_not(_read_json(folder / "config.json"))
    if reason is not None:
        raise CheckpointError(f"{folder} is {reason}")


def why_unreadable(folder: str | Path, error: Exception) -> str:
    """One line on why a library could not load a model from `folder`."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return (
            "it brings its own code, which prunella never runs: take a model of a class that transformers has"
        )
    if "backend tokenizer" in text:
        return "it holds no tokenizer that transformers can read, such as tokenizer.json"
    for path in _weights(Path(folder)):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError) as damage:
                return f"{path.name} is cut short or damaged ({damage}): download or copy it again"
    return text.splitlines()[0] if text else type(error).__name__


@contextlib.contextmanager
def full_disks_are_os_errors() -> Iterator[None]:
    """safetensors has an error of its own for what the system says while writing; outside it is an `OSError` as ever."""
    try:
        yield
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise OSError(errno.EIO, f"weights cannot be written ({error})") from error


def copy_side_files(source: Path, folder: Path, *, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put the files of a model folder that are no weights beside what was written of the model, but for those written anew.

    Where the vocabulary was cut, that of before in other forms stays behind.
    """
    patterns = [name for name in SIDE_FILES if not (is_cut(tokenizer) and name in _VOCABULARIES)]
    for file in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        out = folder / file.relative_to(source)
        if file.is_file() and not out.exists():
            out.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, out)


def _weights(folder: Path) -> list[Path]:
    found = {path for pattern in _WEIGHTS for path in folder.glob(pattern)}
    return sorted(path for path in found if not path.name.startswith("adapter_"))


def _read_json(path: Path) -> dict[str, Any]:
    """Its object; {} where there is none: whoever needs the file says so."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
